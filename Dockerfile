# syntax=docker/dockerfile:1
# Both images: one static binary each, and nothing else.
#
#   docker build --target operator --tag wspool.dev/wspool-operator:0.1.0 .
#   docker build --target sidecar --tag wspool.dev/wspool-sidecar:0.1.0 .
#
# `make images` builds them without Docker: it compiles as here, and reads the stages that are FROM scratch.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target images/compile /out

FROM scratch AS operator
COPY --from=build /out/wspool-operator /wspool-operator
LABEL org.opencontainers.image.title="wspool-operator"
LABEL org.opencontainers.image.description="Plans which pod holds which slot, and moves the connections that must move."
LABEL org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/wspool-operator"]

FROM scratch AS sidecar
COPY --from=build /out/wspool-sidecar /wspool-sidecar
LABEL org.opencontainers.image.title="wspool-sidecar"
LABEL org.opencontainers.image.description="The proxy beside each server: places connections by key, and moves them."
LABEL org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
ENTRYPOINT ["/wspool-sidecar"]
