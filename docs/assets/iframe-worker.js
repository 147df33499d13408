/* Browsers start no worker from file://. There the search runs in a hidden frame instead, so that it
   works from the built folder without a server. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.srcdoc = "<body></body>";
      this.ready = new Promise((resolve) => {
        frame.onload = () => {
          const worker = frame.contentWindow;
          worker.postMessage = (data) =>
            this.dispatchEvent(new MessageEvent("message", { data }));
          const script = worker.document.createElement("script");
          script.src = url;
          script.onload = () => resolve(worker);
          worker.document.body.append(script);
        };
      });
      document.body.append(frame);
    }
    async postMessage(data) {
      const worker = await this.ready;
      worker.dispatchEvent(new worker.MessageEvent("message", { data }));
    }
    terminate() {}
  };
}
