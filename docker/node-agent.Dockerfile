# The node agent, its worker and the CPU part of PyTorch, without a shell.
#
#   docker buildx build -f docker/node-agent.Dockerfile --platform linux/amd64,linux/arm64 \
#       --sbom=true --build-arg REVISION=$(git rev-parse HEAD) -t lamina/node-agent:0.1.0 .
#
# Where no base can be pulled, the stages `programs`, `libtorch` and `rootfs` are given as
# named build contexts: `cargo xtask images` does so.
ARG RUST=rust:1.95.0-bookworm
ARG DEBIAN=debian:12.12-slim

FROM ${RUST} AS wheel
ARG TORCH=2.13.0
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-pip
RUN python3 -m pip download --quiet --no-deps --dest /wheel torch==${TORCH} \
    && python3 -m zipfile -e /wheel/torch-*.whl /wheel
COPY docker/libtorch.sh /
RUN sh /libtorch.sh /wheel/torch/lib /libtorch/lib \
    && ln -s /wheel/torch/include /libtorch/include \
    && echo ${TORCH} > /libtorch/build-version

FROM scratch AS libtorch
COPY --from=wheel /libtorch/lib /

FROM wheel AS compile
WORKDIR /src
COPY . .
RUN LIBTORCH=/libtorch cargo build --release --locked \
        --package lamina-node-agent --package lamina-worker \
    && install -D -t /programs target/release/lamina-node-agent target/release/lamina-worker

FROM scratch AS programs
COPY --from=compile /programs /

FROM ${DEBIAN} AS layout
COPY docker/rootfs.sh /
RUN apt-get update -qq \
    && sh /rootfs.sh /rootfs base-files libc6 libgcc-s1 libstdc++6 ca-certificates \
    && install -d -o 65532 -g 65532 /rootfs/var/cache/lamina

FROM scratch AS rootfs
COPY --from=layout /rootfs /

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lamina-node-agent" \
      org.opencontainers.image.description="Splits neural networks over device, edge and cloud: the agent of a node" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=rootfs / /
# The largest part first: it changes with PyTorch's version alone, and is pulled once.
COPY --from=libtorch / /opt/lamina/lib/
COPY --from=programs /lamina-node-agent /lamina-worker /usr/bin/
ENV PATH=/usr/bin \
    LD_LIBRARY_PATH=/opt/lamina/lib \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/bin/lamina-node-agent"]
