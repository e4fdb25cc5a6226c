# The builder and the base below are both Debian 12, so the binary meets at run time the glibc that it was linked with.
FROM rust:1.95.0-slim-bookworm AS build
WORKDIR /build

# Dependencies in a layer of their own, which lasts until Cargo.toml or Cargo.lock changes: they are built for an empty
# program, and `cargo clean -p` then takes away all that was made of it. What is left cannot be mistaken for the real one,
# whatever the times on the files copied in below. Benches, tests and examples that the manifest names are cut out of it,
# because cargo reads no manifest whose named files are missing, and an image needs none of them.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { cut = /^\[\[(bench|test|example)\]\]/ } !cut' Cargo.toml > cut.toml && mv cut.toml Cargo.toml \
 && mkdir src && echo 'fn main() {}' > src/main.rs && : > src/lib.rs \
 && cargo build --release --locked \
 && cargo clean --release --locked -p variance-connector \
 && rm -r src

COPY src src
RUN cargo build --release --locked --bin variance-connector

# distroless/cc holds glibc, libgcc (which unwinds panics), CA certificates and nothing else that could run: no shell, no
# package manager. `static` is smaller, but asks for musl, whose allocator is slow where many threads allocate; a glibc
# linked statically cannot look up host names by the system's own rules. TLS trusts the certificates of this base, or those
# of the bundle that SSL_CERT_FILE names, for a private authority.
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="variance-connector" \
      org.opencontainers.image.description="Forwards PostHog events to Variance, one webhook call per event, and loses none" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /build/target/release/variance-connector /usr/local/bin/variance-connector

# The health check reads this variable too, so the address is changed here and not by --listen.
ENV CONNECTOR_LISTEN=0.0.0.0:8080
# Says where it runs, by systemd's convention: what holds for containers alone is warned of there alone.
ENV container=oci
EXPOSE 8080
# `nonroot` by number, for orchestrators that must see that it is not root. It owns no file here and writes none.
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/variance-connector", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/variance-connector"]
