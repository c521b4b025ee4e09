# Heliostat for the CPU. In the root of the repository: docker build -t heliostat .
#     docker run --rm --init -v "$PWD:/data" --user "$(id -u):$(id -g)" heliostat train demo
# The image that builds is not the slim one: pycosat, which reasoning-gym needs, is compiled from source.
FROM python:3.12 AS build
WORKDIR /sources
COPY constraints.txt ./
RUN python -m venv /opt/heliostat
# torch comes first and by its exact pin; the CPU's build is 2.x.y+cpu, which wins over the index's 2.x.y with CUDA
RUN /opt/heliostat/bin/pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch
COPY pyproject.toml DESCRIPTION.md LICENSE ./
COPY src src
RUN /opt/heliostat/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.12-slim
COPY --from=build /opt/heliostat /opt/heliostat
# anyone may write there: --user may name a user that the image does not know
RUN useradd --create-home heliostat && mkdir /data && chmod 0777 /data
USER heliostat
WORKDIR /data
ENV PATH=/opt/heliostat/bin:$PATH HF_HOME=/data/.huggingface HELIOSTAT_CACHE=/data/.heliostat
ENTRYPOINT ["heliostat"]
