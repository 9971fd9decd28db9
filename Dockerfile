# The studio in a container: docker compose up, or see docs/studio.md.
#
# Build arguments:
#   PYTHON            version of Python
#   TORCH_INDEX_URL   index of the PyTorch build: the small one for processors by default; for NVIDIA GPUs
#                     https://pypi.org/simple, or an index of PyTorch for another CUDA

ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/inst
WORKDIR /source
# The libraries change more rarely than the code, so they have a layer of their own.
COPY constraints.txt ./
RUN /opt/inst/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX_URL}" torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /opt/inst/bin/pip install --constraint constraints.txt ".[studio]"

FROM python:${PYTHON}-slim

# Everything is written into /data. The code belongs to root, so the studio cannot change itself.
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin inst && install -d -o inst -g inst /data
COPY --from=build /opt/inst /opt/inst
ENV PATH=/opt/inst/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/data/models \
    INST_STUDIO_DATA=/data/studio \
    INST_STUDIO_HOST=0.0.0.0 \
    INST_STUDIO_LOG_FORMAT=json
USER inst
WORKDIR /data
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('INST_STUDIO_PORT', '7860')}/healthz\", timeout=4)"]
STOPSIGNAL SIGTERM
# Other computers can reach it, so it does not start without INST_STUDIO_TOKEN or INST_STUDIO_TOKEN_FILE.
ENTRYPOINT ["inst", "studio"]
