# The repository with its environment; `docker run` runs the checks and the tests without the slow ones.
# nnU-Net's workers share memory through /dev/shm: give `docker run --shm-size=2g` for trainings.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /nnunet_locctx
COPY . .
RUN make env
CMD ["make", "test"]
