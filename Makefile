# make demo · make test · make check · make bench; the first of any of them makes .venv.
PYTHON ?= python3
BIN := .venv/bin

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install demo reference test test-all test-floors check format proto fuzz chaos soak bench bench-table bench-cost bench-step bench-codecs bench-checkpoints bench-link bench-presets bench-cohorts bench-crowd bench-peers bench-tls bench-stacked test-docker sbom lock install-hashed pin-images bench-images bench-scrape bench-memory test-edge bench-infer bench-bandwidth bench-flames
install: .venv/installed  ## .venv with everything that is needed here

demo: install  ## one server and four client processes train on this machine
	@$(BIN)/python -m examples.demo

test: install  ## all tests but the slow ones
	@$(BIN)/python -m pytest -n 3 -m 'not slow and not docker'

test-all: install  ## the slow ones too
	@$(BIN)/python -m pytest -m 'not docker'

test-floors: install  ## a fast part of them on the oldest versions that pyproject.toml allows, in build/floors; a few minutes
	@$(BIN)/python tests/floors.py

test-docker: install  ## containers: builds the images, then real `docker-compose up`, about ten minutes
	@$(BIN)/python tests/composed.py
	@$(BIN)/python -m pytest -m docker tests/test_docker.py -s

CYCLONEDX := 7.5.0
build/sbom-tools/installed:
	@$(PYTHON) -m venv build/sbom-tools
	@build/sbom-tools/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==$(CYCLONEDX)
	@touch $@

sbom: build/sbom-tools/installed  ## what is installed in .venv, as a CycloneDX bill of materials: build/sbom.json
	@build/sbom-tools/bin/cyclonedx-py environment --output-format JSON --output-reproducible --output-file build/sbom.json $(BIN)/python
	@echo wrote build/sbom.json

lock: install  ## write constraints-hashed.txt: what is installed in .venv, with the hashes of the files for this platform; some minutes
	@$(PYTHON) docker/lock.py $(BIN)/python

install-hashed:  ## .venv with just the files that constraints-hashed.txt names by their hashes (on the platform that it was made on)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints-hashed.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch .venv/installed

pin-images:  ## write the base images of .env by digest (needs docker and a registry)
	@$(PYTHON) docker/pin.py .env

check: install  ## format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: install
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

GRPCIO_TOOLS := 1.62.3
build/proto-tools/installed:
	@$(PYTHON) -m venv build/proto-tools
	@build/proto-tools/bin/pip install --quiet --disable-pip-version-check grpcio-tools==$(GRPCIO_TOOLS) 'setuptools<80'
	@touch $@

# protoc 25, the last whose code does not refuse a protobuf that is older than itself; its Python module needs pkg_resources.
proto: build/proto-tools/installed  ## regenerate sl_common/proto from protos/, with a protoc of its own
	@mkdir -p build/proto
	@build/proto-tools/bin/python -m grpc_tools.protoc -Iprotos --python_out=build/proto --pyi_out=build/proto sl/v1/split.proto
	@cp build/proto/sl/v1/split_pb2.py build/proto/sl/v1/split_pb2.pyi sl_common/proto/

reference: install  ## write docs/reference from the code
	@$(BIN)/python docs/generate.py

fuzz: install  ## over a million hostile inputs into all that reads what others wrote, and a live server; a quarter of an hour
	@$(BIN)/python tests/fuzz.py

chaos: install  ## a seeded adversary kills servers and clients and disturbs their links, for every preset; about half an hour
	@$(BIN)/python -m pytest -m 'slow or not slow' tests/test_chaos.py tests/test_kill.py tests/test_links.py tests/test_slow_links.py

soak: install  ## 2,000 rounds while clients come and go: does the server's process grow? Writes benchmarks/results/soak.md
	@$(BIN)/python -m benchmarks.soak

test-edge: install  ## the client in an emulated ARM machine, half an hour (Linux, root, qemu-user-static binfmt-support debootstrap)
	@tests/edge/run

bench-memory: install  ## a client's memory and start against torch's own; writes benchmarks/results/memory.md
	@$(BIN)/python -m benchmarks.memory

bench-codecs: install  ## measure every codec against a copy; writes benchmarks/results/codecs.md
	@$(BIN)/python -m benchmarks.codecs

bench-link: install  ## a step over 20 Mbit/s (Linux, root); writes benchmarks/results/link.md
	@$(BIN)/python -m benchmarks.shaped

bench-presets: install  ## every preset on Fashion-MNIST, about twenty minutes; writes benchmarks/results/presets.md
	@$(BIN)/python -m benchmarks.presets

bench-cohorts: install  ## the head's step on cohorts of 1, 16, 64; writes benchmarks/results/cohorts.md
	@$(BIN)/python -m benchmarks.cohorts

bench-tls: install  ## a step over TLS against plaintext; writes benchmarks/results/tls.md
	@$(BIN)/python -m benchmarks.tls

bench-checkpoints: install  ## a checkpoint a round against none, and recovery; writes benchmarks/results/checkpoints.md
	@$(BIN)/python -m benchmarks.checkpoints

bench-crowd: install  ## one server under 10 to 1,000 clients; writes benchmarks/results/crowd.md
	@$(BIN)/python -m benchmarks.crowd

bench-scrape: install  ## a scrape of 200 clients' metrics; writes benchmarks/results/scrape.md
	@$(BIN)/python -m benchmarks.scrape

bench-peers: install  ## the same step over other people's systems, an hour or two; writes benchmarks/results/peers.md
	@$(BIN)/python -m benchmarks.peers.install || true
	@$(BIN)/python -m benchmarks.peers

bench-stacked: install  ## the stacked simulator against the plain one; writes benchmarks/results/stacked.md
	@$(BIN)/python -m benchmarks.stacked

bench-infer: install  ## split inference against sending the raw image (the link: Linux, root); writes benchmarks/results/infer.md
	@$(BIN)/python -m benchmarks.infer

bench-flames: install  ## flame graphs of server and client (Linux, root); writes benchmarks/results/flame-*.svg
	@$(BIN)/python -m benchmarks.flames

bench-bandwidth: install  ## 16.8 MB each way and no computation; writes benchmarks/results/bandwidth.md
	@$(BIN)/python -m benchmarks.bandwidth

bench: install  ## measure all that has a target, two to three hours, into build/bench; prints it beside the targets and what is committed
	@$(BIN)/python -m benchmarks.peers.install || true
	@$(BIN)/python -m benchmarks.targets --run

bench-table: install  ## the committed numbers beside their targets
	@$(BIN)/python -m benchmarks.targets

bench-step: install  ## one step against a bare stream; writes benchmarks/results/step.md
	@$(BIN)/python -m benchmarks.step

bench-cost: install  ## CPU time a step of server and client beside a bare stream's, a few minutes (Linux); writes benchmarks/results/cost.md
	@$(BIN)/python -m benchmarks.cost

bench-images: install  ## sizes of the container images, once they are built; writes benchmarks/results/images.md
	@$(BIN)/python -m benchmarks.images
