# Fovea's images, all from one base image:
#
#   docker build --tag fovea .                             the gateway, with the bundled models; no torch, no compiler
#   docker build --tag fovea-export --target export .      `python -m export`: training and publishing, with torch
#   docker build --tag fovea-load --target load .          locust, with the load tests
#
# Podman: add --format docker, or the health check is left out. docs/deploying.md says more.
ARG BASE_IMAGE=docker.io/library/python:3.11-slim-bookworm

# What is installed goes to a virtual environment without pip. Compiled here, for the root is read-only later; hashes
# that nobody checks instead of times, which not every way of copying keeps.
FROM ${BASE_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv --without-pip /opt/fovea
COPY pyproject.toml constraints.txt ./
COPY deploy/containers/requirements.py deploy/containers/

FROM packages AS gateway-packages
RUN python3 deploy/containers/requirements.py postgresql redis tracing >requirements.txt \
 && python3 -m pip --python /opt/fovea/bin/python install --no-compile --constraint constraints.txt --requirement requirements.txt \
 && python3 -m compileall -q -x /tests/ --invalidation-mode unchecked-hash /opt/fovea/lib
COPY service /srv/fovea/service
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /srv/fovea

FROM packages AS export-packages
# For torch without CUDA: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL=
RUN python3 deploy/containers/requirements.py export >requirements.txt \
 && python3 -m pip --python /opt/fovea/bin/python install --no-compile --constraint constraints.txt --requirement requirements.txt \
 && (python3 -m compileall -q -x /tests/ --invalidation-mode unchecked-hash /opt/fovea/lib \
     || echo "what did not compile is for a newer Python")
COPY service /srv/fovea/service
COPY export /srv/fovea/export
RUN python3 -m compileall -q --invalidation-mode unchecked-hash /srv/fovea

FROM packages AS load-packages
RUN python3 -m pip --python /opt/fovea/bin/python install --no-compile --constraint constraints.txt \
        grpcio grpcio-reflection locust numpy pillow protobuf \
 && python3 -m compileall -q -x /tests/ --invalidation-mode unchecked-hash /opt/fovea/lib
COPY load_tests /srv/fovea/load_tests

# What all images have in common: a user that is not root, and nothing to be written beside /tmp and one volume.
FROM ${BASE_IMAGE} AS common
ARG BASE_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Fovea" \
      org.opencontainers.image.description="Serves convolutional image classifiers: calibrated, explained, verified before they serve." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
ENV PATH=/opt/fovea/bin:$PATH \
    PYTHONPATH=/srv/fovea \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp
RUN mkdir -p /var/lib/fovea && chown 10001:10001 /var/lib/fovea
COPY LICENSE /usr/share/doc/fovea/LICENSE
USER 10001:10001

FROM common AS export
COPY --from=export-packages /opt/fovea /opt/fovea
COPY --from=export-packages /srv/fovea /srv/fovea
ENV MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /var/lib/fovea
VOLUME /var/lib/fovea
ENTRYPOINT ["python", "-m", "export"]
CMD ["--help"]

FROM common AS load
COPY --from=load-packages /opt/fovea /opt/fovea
COPY --from=load-packages /srv/fovea /srv/fovea
WORKDIR /srv/fovea
ENTRYPOINT ["locust", "-f", "load_tests/locustfile.py"]

FROM common AS gateway
COPY --from=gateway-packages /opt/fovea /opt/fovea
COPY --from=gateway-packages /srv/fovea /srv/fovea
COPY model_repository /srv/fovea/model_repository
WORKDIR /srv/fovea
# A container has an address of its own: on loopback nobody would reach the server.
ENV FOVEA_HOST=0.0.0.0 \
    FOVEA_DATABASE_URL=sqlite:////var/lib/fovea/fovea.db \
    FOVEA_LOG_FORMAT=json
VOLUME /var/lib/fovea
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# Alive, not ready: a gateway whose Triton is away should not be replaced for that.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8080/healthz', timeout=4)"]
ENTRYPOINT ["python", "-m", "service"]
# Without a key in its database the server would not start; so the first one is made, and shown in the log.
CMD ["serve", "--first-key"]
