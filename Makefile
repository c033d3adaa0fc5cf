# `make demo` and `make test` each do everything on a bare machine; the rest are their parts.
# One profile (release) for all, because llama.cpp is built once for each profile.

PREFIX ?= /usr/local
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where cargo finds libtorch: the environment first, then what scripts/setup.sh has unpacked.
TORCH  := $(or $(LIBTORCH),.deps/libtorch/torch)

# Where the newest build of llama.cpp left its libraries: lib/ has those that the programs are linked
# to, backends/ the kernel modules of which one is loaded.
LLAMA = $(patsubst %/backends/,%,$(firstword $(shell ls -dt $(TARGET)/release/build/llama-cpp-sys-2-*/out/backends/ 2>/dev/null)))

BIN   := $(DESTDIR)$(PREFIX)/bin
LIB   := $(DESTDIR)$(PREFIX)/lib/reflectd
SHARE := $(DESTDIR)$(PREFIX)/share/reflectd
UNITS := $(DESTDIR)$(PREFIX)/lib/systemd

.PHONY: demo test bench-engine bench-rlrf bench-trainer setup build lint install clean
.NOTPARALLEL:

# The whole loop on the embedded model, twice. `make demo ARGS=--json` prints for machines.
demo: build
	$(TARGET)/release/reflectd demo $(ARGS)

# All that CI runs. The tests come last, so that the slowest ones and their summary are what one
# reads. The programs are built first, because tests of the daemon start the trainer.
test: build lint
	cargo test --release --workspace --doc
	@scripts/test.sh --release --workspace --no-fail-fast --tests

# Against llama-server where LLAMA_SERVER names its program; ARGS="--only chats --rounds 9", "--quick",
# "--render" for table and plots out of results.json alone.
bench-engine: build
	cargo bench --bench engine -- $(ARGS)

# The method proved on the nano model, about an hour; interrupted, it goes on where it was.
# ARGS=--quick for minutes, ARGS=--render for tables and plot out of results.json alone.
bench-rlrf: build
	cargo bench --bench rlrf -- $(ARGS)

# Against TRL and PEFT where TRL_PYTHON names a Python that has them; ARGS="--device cuda".
bench-trainer: build
	cargo bench --bench trainer -- $(ARGS)

setup:
	@scripts/setup.sh

build: setup
	cargo build --release

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --release --workspace --no-deps --document-private-items

# Both programs, all libraries beside them (llama.cpp's with its kernel modules, the trainer's
# libtorch), the default configuration to copy from, and units.
# Builds nothing, so that root needs no Rust: `make build && sudo make install PREFIX=/usr`.
install:
	@test -x $(TARGET)/release/reflectd || { echo "run 'make build' first" >&2; exit 1; }
	@test -n "$(LLAMA)" || { echo "llama.cpp's libraries are not in $(TARGET); run 'make build' first" >&2; exit 1; }
	install -d $(BIN) $(LIB) $(SHARE) $(UNITS)/system $(UNITS)/user $(DESTDIR)$(PREFIX)/lib/sysusers.d
	install -m 755 $(TARGET)/release/reflectd $(TARGET)/release/reflectd-trainer $(BIN)
	cp -P $(LLAMA)/lib/libllama.so.* $(LLAMA)/lib/libggml*.so.* $(LLAMA)/backends/libggml-*.so $(LIB)
	find $(TORCH)/lib $(TORCH)/../nvidia/*/lib -maxdepth 1 -name '*.so*' ! -name 'libtorch_python*' \
		-exec cp -P --target-directory=$(LIB) {} +
	cp -R agents prompts packaging/reflectd.yaml $(SHARE)
	for unit in system/reflectd.service user/reflectd.service; do \
		sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/systemd/$$unit > $(UNITS)/$$unit || exit 1; \
	done
	install -m 644 packaging/systemd/system/reflectd.socket $(UNITS)/system
	install -m 644 packaging/systemd/user/reflectd.socket $(UNITS)/user
	install -m 644 packaging/systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/reflectd.conf

# Keeps .deps: libtorch is a download, not a build.
clean:
	cargo clean
