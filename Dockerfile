# A detector as a service: docker build -t moelora_ad . && docker run -p 127.0.0.1:8000:8000 moelora_ad
# PyPI's PyTorch computes on the CPU and on NVIDIA GPUs: docker run --gpus all -p 127.0.0.1:8000:8000 moelora_ad
# A smaller image for the CPU alone: docker build --build-arg TORCH_INDEX=URL ..., the index that pytorch.org names for it
# Another model: docker run -v "$PWD/model:/model:ro" -p 127.0.0.1:8000:8000 moelora_ad serve --model /model --host 0.0.0.0

FROM python:3.12-slim AS build
# Where PyTorch comes from; empty for pip's own index
ARG TORCH_INDEX=
RUN python -m venv /opt/moelora_ad
ENV PATH=/opt/moelora_ad/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# A layer of its own, so that a change of the code does not install it again.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.11,<2.15" "torchaudio>=2.11,<2.15"
COPY . /source
RUN pip install "/source[archives,serve]"

FROM python:3.12-slim
COPY --from=build /opt/moelora_ad /opt/moelora_ad
RUN useradd --create-home --uid 10001 detector
USER 10001
WORKDIR /home/detector
ENV PATH=/opt/moelora_ad/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=30s --timeout=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
ENTRYPOINT ["moelora-ad"]
# From within, 0.0.0.0 is how the port is reached; who reaches it from outside, -p decides.
CMD ["serve", "--model", "mini", "--host", "0.0.0.0"]
