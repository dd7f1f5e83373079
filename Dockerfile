# syntax=docker/dockerfile:1
# The serving image, for a CPU or for CUDA GPUs: docs/image.md says how to build either.

# VARIANT=cuda needs a base that holds torch; pip never replaces that one.
ARG BASE_IMAGE=public.ecr.aws/docker/library/python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS torch
ARG VARIANT=cpu
# Where pip finds torch's build for CPUs, beside what its own configuration says.
ARG TORCH_INDEX=""
COPY image/locks/torch-cpu.lock /locks/
WORKDIR /opt/torch
# What only the tests and builds of others need is left out: torch/test and the headers.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    case "${VARIANT}" in \
    cpu) \
        pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
            ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} \
            --target . --requirement /locks/torch-cpu.lock \
        || { echo "error: is torch's build for CPUs in pip's reach? TORCH_INDEX names its index"; exit 1; } \
        && rm -r torch/test torch/include ;; \
    cuda) \
        if ! { command -v cc || command -v gcc || command -v clang; }; then \
            echo "note: without a C compiler in BASE_IMAGE there are no Triton kernels"; \
        fi; \
        python -c 'import torch; assert torch.version.cuda, "this torch is not for CUDA"' \
        || { echo "error: VARIANT=cuda needs a BASE_IMAGE with a CUDA build of torch"; exit 1; } ;; \
    *) echo "error: VARIANT is cpu or cuda, not ${VARIANT}"; exit 1 ;; \
    esac

FROM ${BASE_IMAGE} AS packages
COPY image/locks/server.lock /locks/
WORKDIR /opt/packages
# Of the hundreds of architectures in transformers one is used: compiling all would be 60 MB.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    pip install --no-cache-dir --no-compile --no-deps --only-binary :all: --require-hashes \
        --target . --requirement /locks/server.lock \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && rm -rf bin share \
    && python -m compileall -q -x transformers/models/ .

# The compiler stays behind in this stage.
FROM ${BASE_IMAGE} AS kernels
COPY image/locks/kernels.lock /locks/
WORKDIR /opt/kernels
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,required=false \
    pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
        --target /opt/compiler --requirement /locks/kernels.lock
COPY container/model/kernels/csrc csrc
COPY container/model/kernels/build.py ./
RUN PYTHONPATH=/opt/compiler python build.py

FROM ${BASE_IMAGE}
COPY --from=torch /opt/torch /opt/torch
COPY --from=packages /opt/packages /opt/packages
COPY LICENSE /opt/program/
COPY container /opt/program/container
COPY --from=kernels /opt/kernels/*.so /opt/program/container/model/kernels/
WORKDIR /opt/program

# The safe path keeps the working directory and scripts' folders from shadowing modules. Whatever
# wants to write finds the temporary folder, so the root may be read-only and the user anybody.
ENV PYTHONSAFEPATH=1 \
    PYTHONPATH=/opt/program:/opt/packages:/opt/torch \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    XDG_CACHE_HOME=/tmp/cache \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton

# Everything that will be imported is there, and torch is the one that the server was tested with.
RUN python -m compileall -q container \
    && python -m container.transformers_index \
    && python -c 'import torch, container.model.engine_loader; assert torch.__version__.startswith("2.13.0"), torch.__version__' \
    && rm -rf /tmp/*

# SageMaker expects root; anybody else works too.
ARG RUN_AS=0
USER ${RUN_AS}
EXPOSE 8080
ENTRYPOINT ["python", "-m", "container"]
CMD ["serve"]

HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:%s/ping' % (os.getenv('SAGEMAKER_BIND_TO_PORT') or os.getenv('PORT') or 8080), timeout=4)"]

ARG BASE_IMAGE
ARG VARIANT=cpu
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      com.amazonaws.sagemaker.capabilities.multi-models=true \
      org.opencontainers.image.title="sagemaker-llm-container" \
      org.opencontainers.image.description="Serves language models on Amazon SageMaker (${VARIANT})" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
