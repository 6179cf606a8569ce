# The released image: the controller and the command, without the embedded registry.
#   docker build -t promotion-controller:0.1.0 .
# `.ci/image` runs the commands of the stage `build` without a container.

# Base images by digest: the tag says what it is, the digest which one. Renew both together, as SECURITY.md says.
FROM docker.io/library/rust:1.95.0-slim-trixie@sha256:e14e87345b4d5964ddcc3491d27ee046a0f23820f340c3c1e24da6880141f7c0 AS build
WORKDIR /build
# Puts the list of dependencies into the program, where scanners of images look for it.
RUN cargo install --quiet --locked cargo-auditable --version 0.7.7
# No path of the builder gets into the program.
ENV RUSTFLAGS="--remap-path-prefix=${CARGO_HOME}=/cargo"
# The dependencies are a layer of their own, rebuilt only when they change: they are built for an empty program. Plain layers,
# because builders that keep no cache mounts keep those. Of the other packages only the manifests are here, which Cargo reads;
# none of their code is built.
COPY Cargo.toml Cargo.lock ./
COPY crates/core/Cargo.toml crates/core/
COPY crates/quaylike/Cargo.toml crates/quaylike/
COPY crates/sim/Cargo.toml crates/sim/
RUN mkdir -p src benches crates/core/src crates/quaylike/src crates/sim/src \
    && touch src/lib.rs benches/figures.rs crates/core/src/lib.rs crates/quaylike/src/lib.rs crates/sim/src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo auditable build --locked --release --package promotion-controller --no-default-features
# The licence texts of everything that is linked in, as its authors ship them.
RUN rm -rf licenses && mkdir licenses \
    && cargo tree --locked --package promotion-controller --no-default-features --edges normal --no-dedupe --prefix none --format '{p} {l}' \
       | grep -v ' (/' | sort -u > licenses/README \
    && while read -r name version _; do \
         for text in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-${version#v}"/; do \
           find "$text" -maxdepth 1 -type f \( -iname 'LICEN[CS]E*' -o -iname 'COPYING*' -o -iname 'NOTICE*' \) \
             -exec sh -c 'mkdir -p "licenses/$1" && cp "$2" "licenses/$1/"' _ "$name-${version#v}" {} \; ; \
         done; \
       done < licenses/README
COPY crates/core/src crates/core/src
COPY src src
# Copied files keep their times: Cargo has to be told that they are newer than the empty ones.
RUN touch crates/core/src/lib.rs src/lib.rs src/main.rs \
    && cargo auditable build --locked --release --package promotion-controller --no-default-features

# glibc, libgcc and the CA certificates of the Debian that it was built on; no shell, no package manager.
FROM gcr.io/distroless/cc-debian13:nonroot@sha256:54df941ed0d06a1bd95ef5e0ce391fd8d9f94b64782dc9a60062727849ee3f97
LABEL org.opencontainers.image.title="promotion-controller" \
      org.opencontainers.image.description="Promotes container images to floating tags without ever leaving one dangling" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /build/target/release/promotion-controller /usr/local/bin/promotion-controller
COPY --from=build /build/licenses /usr/share/licenses/promotion-controller
# By number, so that runAsNonRoot can be checked.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/promotion-controller"]
CMD ["controller"]
