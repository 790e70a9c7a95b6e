# amcl-fast with its trainer, for NVIDIA GPUs with a driver of CUDA 13:
#   docker build -t amcl-fast .
#   docker run --gpus all --ipc host -v /data/images:/data -v $PWD/runs:/work/runs amcl-fast pretrain --recipe … --data /data
# With a driver of CUDA 12:
#   docker build -t amcl-fast --build-arg CUDA=12.8.1 --build-arg EXTRAS=train-cuda12,timm,export,hub \
#       --build-arg INDEX=https://download.pytorch.org/whl/cu128 .
ARG CUDA=13.0.2

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/amcl-fast
WORKDIR /source
COPY pyproject.toml setup.py CMakeLists.txt MANIFEST.in README.md LICENSE constraints.txt ./
COPY csrc csrc
COPY kernels kernels
COPY benchmarks benchmarks
COPY amcl_fast amcl_fast
ARG EXTRAS=train,timm,export,hub
ARG INDEX=https://pypi.org/simple
RUN /opt/amcl-fast/bin/pip install --no-cache-dir --constraint constraints.txt --extra-index-url "${INDEX}" ".[${EXTRAS}]"

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04
# gcc and Python's headers: Triton and torch.compile compile what they launch kernels by.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 amcl \
    && install --directory --owner amcl /work /work/runs
COPY --from=build /opt/amcl-fast /opt/amcl-fast
ENV PATH=/opt/amcl-fast/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
ENTRYPOINT ["amcl-fast"]
CMD ["--help"]
