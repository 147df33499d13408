# Workers and jobs of the pool `gpu`: torch and vLLM with CUDA. From the root of a checkout:
#   docker build -f infra/images/cuda.Dockerfile -t rlt-pipeline:cuda .
# CUDA's libraries come with the wheels; the machine brings the driver, and NVIDIA's container
# toolkit or device plugin gives the container its GPUs.
FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Triton compiles its launchers with the C compiler that it finds, and so is built here what PyPI has
# as C sources only (pycosat). Debian's, of the pinned image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 10001 --create-home rlt && install -d -o rlt -g rlt /home/rlt/.cache
WORKDIR /opt/rlt

# First what the package needs, so that a change of code installs nothing anew.
COPY constraints/vllm.txt constraints/
RUN pip install -c constraints/vllm.txt torch==2.13.0
COPY pyproject.toml .
RUN touch README.md && pip install -c constraints/vllm.txt -e '.[vllm]'

COPY . .
RUN pip install --no-deps -e .

USER 10001
# Of a worker; a job of a pool has none.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["rlt", "worker", "--pool", "gpu", "--limit", "1", "--with-healthcheck"]
