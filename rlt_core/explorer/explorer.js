"use strict";
// Changes of the form show at once; the address stays the whole state.
const form = document.querySelector("#state");
const tokens = () => [...document.querySelectorAll(".heat .t")];
let pending;

function address() {
  const state = new URLSearchParams(new FormData(form));
  for (const field of form.elements) {
    if (field.dataset.default === field.value) state.delete(field.name);
  }
  return `${location.pathname}?${state}`;
}

form?.addEventListener("input", async (event) => {
  if ("load" in event.target.dataset) return form.requestSubmit();
  const shown = event.target.closest("label")?.querySelector("b");
  if (shown) shown.textContent = event.target.value;
  const to = address();
  history.replaceState(null, "", to);
  pending?.abort();
  const { signal } = (pending = new AbortController());
  await new Promise((done) => setTimeout(done, 60)); // a slider moves on
  if (signal.aborted) return;
  try {
    const answer = await fetch(to, { signal });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const found = page.querySelector("#results") ?? page.querySelector("main");
    const focused = tokens().indexOf(document.activeElement);
    document.querySelector("#results").replaceChildren(...found.childNodes);
    tokens()[focused]?.focus();
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
});
for (const button of document.querySelectorAll(".without-script")) button.hidden = true;

// An address has no empty parameters.
document.querySelector("form.filters")?.addEventListener("formdata", ({ formData }) => {
  for (const [name, value] of [...formData]) if (value === "") formData.delete(name);
});

// Arrow keys go from token to token; their values show while they have the focus.
document.addEventListener("keydown", (event) => {
  const token = event.target.closest?.(".heat .t");
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") token.blur();
  const to = {
    ArrowRight: token.nextElementSibling,
    ArrowLeft: token.previousElementSibling,
    Home: token.parentElement.firstElementChild,
    End: token.parentElement.lastElementChild,
  }[event.key];
  if (to) {
    to.focus();
    event.preventDefault();
  }
});
