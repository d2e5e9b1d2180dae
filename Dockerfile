# The node as an image. Not run by CI.
#
#   docker build -t wasilet .
#
# As a pod on the host's network: charts/wasilet. Beside a kind or minikube cluster: README.md.

FROM rust:1.95-slim-trixie AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Without incremental compilation: nothing is compiled twice here. The allocator of an arm64 build takes all page sizes that
# there are, not only this machine's.
RUN if [ "$(uname -m)" = aarch64 ]; then export JEMALLOC_SYS_WITH_LG_PAGE=16; fi \
    && CARGO_INCREMENTAL=0 cargo build --release --locked --bin wasilet \
    && strip --strip-debug target/release/wasilet

FROM golang:1.26-trixie AS toolbox
WORKDIR /src
COPY wasm-samples wasm-samples
RUN cd wasm-samples/go-overlay && go build -o /go-overlay . \
    && cd ../toolbox && /go-overlay build -trimpath -ldflags='-s -w' -o /toolbox.wasm .

FROM debian:trixie-slim
# For registries and for guests that bring no authorities of their own.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/wasilet /usr/local/bin/wasilet
COPY --from=toolbox /toolbox.wasm /usr/local/share/wasilet/toolbox.wasm
COPY LICENSE /usr/share/doc/wasilet/LICENSE
VOLUME /var/lib/wasilet
# Guests end and are recorded, as on SIGTERM of any node.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/wasilet"]
CMD ["run", "--config", "/var/lib/wasilet/config.yaml"]
