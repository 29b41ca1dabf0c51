# The operator: one program on glibc and CA certificates, without a shell.
#
#   docker buildx build -f docker/operator.Dockerfile --platform linux/amd64,linux/arm64 \
#       --sbom=true --build-arg REVISION=$(git rev-parse HEAD) -t lamina/operator:0.1.0 .
#
# Where no base can be pulled, the stages `programs` and `rootfs` are given as named build
# contexts: `cargo xtask images` does so.
ARG RUST=rust:1.95.0-bookworm
ARG DEBIAN=debian:12.12-slim

FROM ${RUST} AS compile
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package lamina-operator \
    && install -D -t /programs target/release/lamina-operator

FROM scratch AS programs
COPY --from=compile /programs /

FROM ${DEBIAN} AS layout
COPY docker/rootfs.sh /
RUN apt-get update -qq \
    && sh /rootfs.sh /rootfs base-files libc6 libgcc-s1 ca-certificates \
    && install -d -o 65532 -g 65532 /rootfs/var/lib/lamina

FROM scratch AS rootfs
COPY --from=layout /rootfs /

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="lamina-operator" \
      org.opencontainers.image.description="Splits neural networks over device, edge and cloud: the operator" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=rootfs / /
COPY --from=programs /lamina-operator /usr/bin/lamina-operator
ENV PATH=/usr/bin \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
ENTRYPOINT ["/usr/bin/lamina-operator"]
