# syntax=docker/dockerfile:1
# Images with the package and what it needs, for CPUs, NVIDIA GPUs and TPUs.
#
#   docker build --target=cpu --tag=biedsnet:cpu .      or cuda12, or tpu
#   docker run --rm --init --stop-timeout=120 -v "$PWD":/work -v biedsnet:/cache biedsnet:cpu \
#     train --config=phantom --workdir=runs/phantom
#
# Words are those of the command biedsnet, and paths start at /work. The user is 1000; with
# --user="$(id -u):$(id -g)" files belong to you. GPUs need --gpus=all. What constraints.txt names
# has the versions that were measured.

FROM python:3.12-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir=/wheels .

FROM python:3.12-slim-bookworm AS installed
# Any user may write to both folders, as in /tmp, so that --user works.
RUN useradd --uid=1000 --create-home biedsnet \
    && install --directory --mode=1777 /work /cache
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint=/constraints.txt \
    "$(echo /wheels/*.whl)[train,dicom,serve,viz]"
ENV XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
WORKDIR /work
VOLUME ["/work", "/cache"]
ENTRYPOINT ["biedsnet"]
CMD ["--help"]

FROM installed AS cuda12
# The driver comes from the host, CUDA with jax.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint=/constraints.txt \
    "$(echo /wheels/*.whl)[cuda12]"
USER 1000

FROM installed AS tpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir --constraint=/constraints.txt \
    "$(echo /wheels/*.whl)[tpu]"
USER 1000

# The last target is the one that is built where none is named.
FROM installed AS cpu
USER 1000
