# SPDX-License-Identifier: Apache-2.0
# The doors to everything; each target is one line over a script that can be read. RING=unit, SHARD=attribution and
# ARGS="-k name -x" narrow `test`, `soak` and `bench`.
PY = .cache/tool/bin/python
.DEFAULT_GOAL = help
.PHONY: help setup servers bpf native deb rpm repo demo test test-package soak bench lint format man lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
setup: ## what building and testing needs, by apt and pip (says what; quick when all is there)
	@packaging/dev/setup
servers: ## setup, and the venvs of the real databases and their clients
	@packaging/dev/setup servers
bpf: setup ## the BPF object
	@if [ -e bpf/Makefile ]; then $(MAKE) -s --no-print-directory -C bpf; else echo "bpf: nothing to build yet"; fi
native: bpf ## the compiled form, in build/native (packaging/native.txt)
	@packaging/dev/setup native && packaging/dev/native
deb: bpf ## the Debian package, in build/package (what fills it and lintian's judgement are said)
	@packaging/dev/setup deb && $(PY) -B packaging/build deb build/package
rpm: bpf ## the package for EL 9 and 10, and the source of its SELinux module, in build/package
	@packaging/dev/setup rpm && $(PY) -B packaging/build rpm build/package
repo: setup ## signed repositories for apt and dnf of what is in build/package, in build/repo (KEY=fingerprint or file, URL=)
	@packaging/dev/setup repo && KEY='$(KEY)' URL='$(URL)' $(PY) -B packaging/build repo build/repo build/package
demo: bpf ## Vecward on a real Chroma, in a network namespace of its own (HOST=1: on this host)
	@[ "$$(id -u)" != 0 ] || packaging/dev/venv chroma requirements/chroma.txt >/dev/null
	@$(PY) -m tests.demo
test: servers bpf ## every ring of tests that this machine can run, and why others were skipped
	@$(PY) -m tests.rings $(if $(RING),--ring $(RING)) $(if $(SHARD),--shard $(SHARD)) -- $(ARGS)
test-package: servers bpf ## the packages in booted systems, all legs: Debian 12 and 13, other kernels, rpm (SHARD=name)
	@packaging/dev/setup machines
	@$(PY) -m tests.rings --ring package --full $(if $(SHARD),--shard $(SHARD)) -- $(ARGS)
soak: servers bpf ## the full sizes, in shards of under an hour (SHARD=name for one)
	@packaging/dev/setup machines
	@$(PY) -m tests.rings --ring soak --ring package --full $(if $(SHARD),--shard $(SHARD)) -- $(ARGS)
bench: bpf ## the measurements of docs/performance.md, which it writes anew; of the compiled form
	@packaging/dev/setup bench && packaging/dev/native
	@cd build/native && ../../$(PY) -m tests.rings --ring bench --full $(if $(SHARD),--shard $(SHARD)) -- $(ARGS); \
		status=$$?; cp docs/performance.md ../../docs/performance.md; exit $$status
lint: setup ## ruff and mypy
	@packaging/dev/lint
format: setup ## ruff, in place
	@$(PY) -m ruff format -q . && $(PY) -m ruff check -q --fix .
man: setup ## manual pages and completions into build/
	@$(PY) packaging/man/manual.py build
lock: setup ## write the lock files anew (see packaging/dev/lock)
	@packaging/dev/lock
clean: ## remove what was built here (the venvs stay under /var/cache/vecward-dev)
	@rm -rf build .cache/mypy .cache/pytest .cache/ruff .hypothesis bpf/*.o; find . -name __pycache__ -prune -exec rm -rf {} +
