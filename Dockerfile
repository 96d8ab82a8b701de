# The program with ONNX Runtime for CPUs: docker run --rm -v "$PWD:/work" onnx-kprune IN.onnx OUT.onnx --calibration DATA
FROM rust:1-bookworm AS build
RUN apt-get update -q && apt-get install -q -y --no-install-recommends pkg-config libopenblas-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY passes passes
COPY fuzz fuzz
COPY benches benches
COPY examples examples
COPY README.md ./
RUN cargo build --release --locked

FROM python:3.12-slim-bookworm
RUN apt-get update -q && apt-get install -q -y --no-install-recommends libopenblas0-pthread && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir "onnxruntime>=1.17"
COPY --from=build /source/target/release/onnx-kprune /usr/local/bin/
WORKDIR /work
ENTRYPOINT ["onnx-kprune"]
