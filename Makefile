# What people and CI run. `make demo` needs neither root (once packages are there) nor the lab.
.PHONY: demo demo-snapshots test check docs lab

demo:
	./setup.sh
	cargo build --locked -p nvmx-demo
	cargo run --quiet --locked -p nvmx-demo

# Takes the snapshots that the demonstration replays anew, on real KVM in the lab.
demo-snapshots: lab
	demo/take.sh

test:
	.ci/test

check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --workspace --no-deps

# Writes docs/rules.md and docs/selftests.md out of the tables in the code; tests hold them together.
docs:
	NVMX_WRITE_DOCS=1 cargo test --quiet --locked -p nvmx-snapshots --test page
	NVMX_WRITE_DOCS=1 cargo test --quiet --locked -p nvmx --test selftests

# Packages and kernels for the lab, cached in ~/.cache/nvmx (NVMX_CACHE overrides).
lab:
	./setup.sh
	lab/setup.sh --selftests
