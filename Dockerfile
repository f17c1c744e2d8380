# Two images: `mlflow`, the registry's server, and `loradock`, which trains, promotes and serves.
#   docker build --target loradock .                     for CPUs
#   docker build --target loradock --build-arg BUILD=gpu .   for NVIDIA GPUs
ARG PYTHON_IMAGE=docker.io/library/python:3.11.16-slim-bookworm

FROM ${PYTHON_IMAGE} AS python
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/loradock --shell /usr/sbin/nologin loradock \
    && install -d -o loradock -g loradock /var/lib/loradock /var/lib/bases /var/lib/artifacts
COPY --chmod=755 stack/entrypoint.sh /usr/local/bin/entrypoint
ENTRYPOINT ["entrypoint"]

# What is installed is what the locks hold, by the hash of each file: nothing is resolved, and nothing built but loradock.
FROM python AS installer
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_BUILD=1
COPY requirements/build.txt /build/
RUN python3 -m venv /opt/installer && python3 -m venv --without-pip /opt/venv \
    && /opt/installer/bin/pip install --no-cache-dir --disable-pip-version-check \
         --no-deps --only-binary :all: --require-hashes --requirement /build/build.txt
ENV PATH=/opt/installer/bin:$PATH

FROM installer AS mlflow-installed
COPY stack/mlflow/requirements.txt /build/
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --python /opt/venv --no-deps --require-hashes --requirement /build/requirements.txt

FROM python AS mlflow
COPY --from=mlflow-installed /opt/venv /opt/venv
COPY stack/roles.py /usr/local/lib/loradock/roles.py
ENV MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true GIT_PYTHON_REFRESH=quiet HOME=/tmp
USER 10001:10001
EXPOSE 5000
CMD ["mlflow", "server", "--help"]

FROM installer AS loradock-installed
ARG BUILD=cpu
# PyTorch's own index has the CPU builds of torch; FIND_LINKS names a directory or page that has them, too.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG FIND_LINKS=""
COPY requirements/${BUILD}.txt /build/requirements.txt
WORKDIR /build
RUN --mount=type=cache,target=/root/.cache/uv \
    sed -n '/^torch==.*+cpu /,/[^\\]$/p' requirements.txt > torch.txt \
    && from="--default-index $TORCH_INDEX" \
    && if [ -n "$FIND_LINKS" ]; then from="--no-index --find-links $FIND_LINKS"; fi \
    && if [ -s torch.txt ]; then \
         uv pip install --python /opt/venv --no-deps --require-hashes --requirement torch.txt $from; \
       fi \
    && uv pip install --python /opt/venv --no-deps --require-hashes --requirement requirements.txt
COPY pyproject.toml README.md LICENSE /build/
COPY loradock /build/loradock
COPY registry /build/registry
COPY trainer /build/trainer
COPY serving /build/serving
RUN hatchling build --target wheel --directory /build/dist \
    && uv pip install --python /opt/venv --no-deps --no-index /build/dist/*.whl

FROM python AS loradock
# vLLM and torch compile kernels for the machine that they run on.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ python3-dev libnuma1 && rm -rf /var/lib/apt/lists/*
COPY --from=loradock-installed /opt/venv /opt/venv
ENV LORADOCK_HOME=/var/lib/loradock LORADOCK_CACHE=/var/lib/bases HF_HOME=/var/lib/bases/hub \
    HOME=/var/lib/loradock XDG_CACHE_HOME=/var/lib/loradock/cache VLLM_NO_USAGE_STATS=1 OMP_WAIT_POLICY=PASSIVE
USER 10001:10001
WORKDIR /var/lib/loradock
EXPOSE 8000
ENTRYPOINT ["entrypoint", "loradock"]
CMD ["--help"]
