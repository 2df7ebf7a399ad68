# docker build -t tuili .
# docker run -p 127.0.0.1:8000:8000 -v tuili:/var/lib/tuili -e TUILI_API_KEYS=KEY tuili [--model NAME] [any other flag of tuili serve]
# Inside it listens on 0.0.0.0, so it starts with a key or with --insecure only; the latter is fine published on 127.0.0.1.
#
# Any Debian or Ubuntu with Python >= 3.11 will do, e.g. BASE_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS base
# The slim Python images bring Python; those of CUDA do not. The distribution's version is the one that fits the image.
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }

FROM base AS build
WORKDIR /src
# An index or a wheel directory of your own; a CPU build of torch, for instance, keeps gigabytes of CUDA out of the image.
ARG PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_NO_INDEX
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# The CPU kernels are compiled here; the image itself needs no compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tuili
# Dependencies alone first: a change of the sources does not download torch again.
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >requirements.txt \
    && /opt/tuili/bin/pip install --requirement requirements.txt
COPY README.md LICENSE setup.py ./
COPY app app
# An image without them would run, slowly: rather no image.
RUN TUILI_REQUIRE_NATIVE=1 /opt/tuili/bin/pip install --no-deps .

FROM base
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/tuili --shell /usr/sbin/nologin tuili \
    && install --directory --owner=tuili --group=tuili --mode=0700 /var/lib/tuili
COPY --from=build /opt/tuili /opt/tuili
ENV PATH=/opt/tuili/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TUILI_HOME=/var/lib/tuili \
    TUILI_HOST=0.0.0.0 \
    TUILI_PORT=8000
USER 10001:10001
WORKDIR /var/lib/tuili
VOLUME /var/lib/tuili
EXPOSE 8000
# Liveness, not readiness: what acts on it restarts the container, and that is no cure for a model that still loads.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"TUILI_PORT\"]}/livez', timeout=4)"]
# Exec form: tuili is process 1 and gets SIGTERM itself, on which it drains.
ENTRYPOINT ["tuili", "serve"]
