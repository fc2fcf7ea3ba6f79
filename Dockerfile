# One image for every service; the command says which: `gateway auth`, `admin`, `proxy`, `demo`, `init`.
# To pin the base image by its digest: --build-arg BASE_IMAGE=python:3.13-slim@sha256:… (docs/containers.md says how to find it).
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
# Another package index than pip's own; one with a password belongs into the build secret `pip.conf` instead.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
WORKDIR /src
# What changes rarely comes first, so that a change of our own code does not install everything anew.
COPY requirements.lock ./
RUN --mount=type=secret,id=pip.conf,target=/root/.config/pip/pip.conf \
    python -m venv --without-pip /opt/gateway \
    && python -m pip --python /opt/gateway/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY clients clients
COPY services services
# What only builds the package goes again: nothing in the image installs or builds anything.
RUN python -m pip --python /opt/gateway/bin/python install --no-index --no-deps --no-build-isolation . \
    && python -m pip --python /opt/gateway/bin/python uninstall --yes --quiet \
       editables hatchling packaging pathspec pluggy trove-classifiers

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Gateway Zero" org.opencontainers.image.licenses="Apache-2.0"
# The official base image brings its standard library without byte code, and nobody can write any into a read-only container:
# each start and each health check would compile it again.
RUN python -m compileall -q "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# Named volumes take owner and mode from what the image has in their place.
RUN cd / && for folder in data data/backups data/outbox data/keys data/postgres data/pki \
      data/pki/ca data/pki/auth data/pki/admin data/pki/operator data/pki/proxy; do \
      install -d -o 10001 -g 10001 -m 700 "/$folder"; \
    done && install -d -m 755 /etc/gateway-zero
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    GATEWAY_DATA_DIR=/data \
    GATEWAY_HTTP_HOST=0.0.0.0
# `gateway.toml` is looked for here.
WORKDIR /etc/gateway-zero
USER 10001:10001
ENTRYPOINT ["gateway"]
CMD ["--help"]
