# phenomhpc: `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Read by pytest.
PYTEST_ARGS ?=
APT_PACKAGES := slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core iproute2 strace chromium
APT_PACKAGES_NODES := debootstrap systemd-container dpkg-dev iproute2 util-linux openssh-client

.PHONY: install install-test system-packages demo test test-nodes lint format lock bench-cli bench-loader bench-convert bench-train bench-embed bench-checkpoint bench-slurm bench-elastic bench-maps bench-gpu soak clean

# Installs the versions of uv.lock with pip, which honours a machine's own wheel folder (a CPU build of torch, say).
install: $(VENV)/installed
$(VENV)/installed: pyproject.toml uv.lock tools/lock_constraints.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/lock_constraints.py uv.lock > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e .
	touch $@

install-test: $(VENV)/installed-test
$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[test,gpu,onnx,tracking,maps,nodes]'
	touch $@

# What the tests use beside Python: installed as root on Debian, else tests that need it are skipped by name.
system-packages:
	@tools/install_system_packages.sh $(APT_PACKAGES)

demo: install
	$(BIN)/phenomhpc demo

# Slurm tests mostly wait, so there is a worker more than cores; threads sleep at OpenMP's barriers, since workers share the cores.
test: install-test system-packages
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 3 --dist loadfile --ignore tests/nodes $(PYTEST_ARGS)

# Boots machines of their own (systemd-nspawn over an overlay of a bare Debian, fetched once with packages and wheels into
# PHENOMHPC_NODES_CACHE or /var/cache/phenomhpc-nodes) and runs the Ansible bundle on them; as root on Debian, else skipped by name.
test-nodes: install-test
	@tools/install_system_packages.sh $(APT_PACKAGES_NODES)
	timeout --kill-after=30 1200 $(BIN)/pytest tests/nodes --durations=10 $(PYTEST_ARGS)

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install-test
	$(BIN)/uv lock

bench-cli bench-convert bench-train bench-embed bench-checkpoint bench-slurm bench-elastic bench-maps: install-test
	$(BIN)/python -m tests.bench.$(subst -,_,$@)

bench-loader: install-test
	$(BIN)/python -m tests.bench.bench_loader; missed=$$?; $(BIN)/python -m tests.bench.bench_start || missed=1; exit $$missed

# From a plain checkout on a machine with a GPU that has torch of its own.
bench-gpu:
	PYTHONPATH=. python3 -m tests.bench.bench_train --device cuda
	PYTHONPATH=. python3 -m tests.bench.bench_feed --device cuda
	PYTHONPATH=. python3 -m tests.bench.bench_loop

# The long campaigns; small versions of them are in `make test`.
soak: install-test system-packages
	@tools/install_system_packages.sh $(APT_PACKAGES_NODES)
	PHENOMHPC_SOAK=1 $(BIN)/pytest -n 2 --dist loadfile --timeout 7200 --ignore tests/nodes $(PYTEST_ARGS)
	PHENOMHPC_SOAK=1 $(BIN)/pytest tests/nodes --durations=10 $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
