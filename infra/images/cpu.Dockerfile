# The Prefect server, workers of the pool `cpu`, an S3 server. From the root of a checkout:
#   docker build -f infra/images/cpu.Dockerfile -t rlt-pipeline:cpu .
FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    DO_NOT_TRACK=1

RUN useradd --uid 10001 --create-home rlt && install -d -o rlt -g rlt /home/rlt/.cache
WORKDIR /opt/rlt

# torch first: from its own index it brings no CUDA.
COPY constraints/cpu.txt constraints/
RUN pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0

# Editable, since `rlt furnish` needs prefect.yaml and infra/ beside the code.
COPY . .
RUN pip install -c constraints/cpu.txt -e '.[kubernetes,s3-server]'

USER 10001
# Of a worker; the server and the S3 server of compose.yaml have their own.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=5)"]
CMD ["prefect", "worker", "start", "--pool", "cpu", "--with-healthcheck"]
