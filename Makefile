# The usual commands, thin over CMake presets (CMakePresets.json), which build in build/<preset>/.
#
#   make demo      installs what is missing, builds release, shows the library on real data
#   make test      installs what is missing, builds dev, runs every test
#   make test-all  make test, then the short tests under sanitizers, then every test of the
#                  release build, with longer histories and more commits; in parts: make test-asan,
#                  make test-tsan, make test-release
#   make check     format, spelling, shell scripts, the text of comments and documents, layers,
#                  warnings of clang, which are errors, clang-tidy
#   make format    formats every source file
#   make bench     the benchmarks beside their rivals, in a quarter of an hour. A part of them:
#                  ONLY=get_uniform, ITEMS=1000000, SUBJECTS=whycache,absl; BENCH=name for one
#                  program, ARGS=... for its arguments; JSON=file for the figures.
#                  BENCH=python: the Python package beside dict, python-lmdb and redis-py
#   make histories LOG=sqlite MINUTES=10
#                  writers, transactions, readers and rewriters that are killed, on a log that
#                  fails (file, sqlite, mysql, postgres, memcached or redis before mysql), and a
#                  check of the answers that they got; KEEP=directory keeps their histories if it
#                  fails
#   make torture   each system call and allocation fails, or kills its process, in turn; hosts in
#                  namespaces, on full, frozen and read-only disks, without resources; a model of
#                  the memory order; files damaged in each bit, at each length, under sanitizers.
#                  Goes on for TORTURE_MINUTES=60, with ALL=1 until every call has failed (a day);
#                  SEED repeats a run. docs/reliability.md has the figures
#   make wheel     the Python package for machines without a compiler: build/wheel/dist
#   make fuzz      the libFuzzer targets, FUZZ_SECONDS=60 each

JOBS ?= $(shell nproc)
# Tests wait for servers and disks for much of their time. Those that mostly compute take the places
# of two (PROCESSORS in tests/CMakeLists.txt).
PARALLEL_TESTS ?= $(shell expr $$(nproc) \* 3)
CTEST_OPTIONS = --parallel $(PARALLEL_TESTS) --no-label-summary
FUZZ_SECONDS ?= 60
DIRECTORIES := $(wildcard include src cli demo examples bench tests fuzz)
SOURCES = $(shell find $(DIRECTORIES) -name '*.h' -o -name '*.cc')

LOG ?= sqlite
MINUTES ?= 1
TORTURE_MINUTES ?= 60

.PHONY: build demo test test-all test-asan test-tsan test-release histories torture bench fuzz \
  wheel format check clean

build:
	scripts/install_packages.sh build test
	cmake --preset dev
	cmake --build --preset dev --parallel $(JOBS)

demo:
	scripts/install_packages.sh demo
	cmake --preset release
	cmake --build --preset release --parallel $(JOBS) --target whycache whycache-demo
	build/release/bin/whycache-demo $(if $(DATA),--data $(DATA))

# The last output is the summary of ctest, and what was not tested. If tests fail, the ends of their
# outputs follow instead.
test: build
	ctest --preset dev $(CTEST_OPTIONS) || { scripts/print_failures.py build/dev; exit 1; }
	@scripts/print_failures.py --not-tested build/dev

test-asan test-tsan: test-%:
	scripts/install_packages.sh build test
	cmake --preset $*
	cmake --build --preset $* --parallel $(JOBS)
	ctest --preset $* $(CTEST_OPTIONS) || { scripts/print_failures.py build/$*; exit 1; }

test-release:
	scripts/install_packages.sh build test
	cmake --preset release-test
	cmake --build --preset release-test --parallel $(JOBS)
	WHYCACHE_HISTORY_SECONDS=120 WHYCACHE_COMMITS=100000 \
	  ctest --preset release-test $(CTEST_OPTIONS) || \
	  { scripts/print_failures.py build/release-test; exit 1; }

test-all: test test-asan test-tsan test-release

histories:
	scripts/install_packages.sh build test
	cmake --preset dev
	cmake --build --preset dev --parallel $(JOBS) --target histories_main
	build/dev/bin/histories_main --log $(LOG) --seconds $$(($(MINUTES) * 60)) \
	  $(if $(KEEP),--keep $(KEEP)) $(if $(SEED),--seed $(SEED))

torture:
	scripts/install_packages.sh build torture
	cmake --preset dev
	cmake --build --preset dev --parallel $(JOBS) \
	  --target whycache environment_host environment_scenario
	cmake --preset asan
	cmake --build --preset asan --parallel $(JOBS) --target damage_tests
	python3 tests/environment/torture.py --bin build/dev/bin \
	  --damage build/asan/bin/damage_tests --jobs $(JOBS) \
	  $(if $(ALL),--all,--minutes $(TORTURE_MINUTES)) $(if $(SEED),--seed $(SEED))

ifeq ($(BENCH),python)
bench:
	scripts/install_packages.sh bench
	cmake --preset release
	cmake --build --preset release --parallel $(JOBS) --target whycache_static bench_python_writers
	python3 python/make_environment.py --library build/release --directory build/release/python \
	  --requirements python/requirements-bench.txt
	build/release/python/environment/bin/python python/bench/figures.py \
	  --writers build/release/bin/bench_python_writers $(if $(ITEMS),--items $(ITEMS)) $(ARGS)
else
bench:
	scripts/install_packages.sh bench
	scripts/unpack_boost.sh build/boost
	cmake --preset release
	cmake --build --preset release --parallel $(JOBS)
	bench/run.py $(if $(BENCH),--program $(BENCH)) $(if $(ONLY),--only $(ONLY)) \
	  $(if $(ITEMS),--items $(ITEMS)) $(if $(SUBJECTS),--subjects $(SUBJECTS)) \
	  $(if $(JSON),--json $(JSON)) $(if $(ARGS),-- $(ARGS))
endif

wheel:
	scripts/install_packages.sh build wheel
	python3 python/make_wheel.py --directory build/wheel

# Inputs worth keeping are in fuzz/corpus/<program>; new ones go to build/fuzz/corpus/<program>.
fuzz:
	scripts/install_packages.sh fuzz
	cmake --preset fuzz
	cmake --build --preset fuzz --parallel $(JOBS)
	set -e; for program in build/fuzz/bin/*_fuzz; do \
	  name=$${program##*/}; new=build/fuzz/corpus/$$name; kept=fuzz/corpus/$$name; mkdir -p $$new; \
	  [ -d $$kept ] || kept=; echo "== $$name"; \
	  $$program -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1 \
	    -artifact_prefix=$$new- $$new $$kept; done

format:
	scripts/install_packages.sh check
	clang-format -i $(SOURCES)

check:
	scripts/install_packages.sh build test bench check
	@echo "clang-format of $(words $(SOURCES)) files"
	@clang-format --dry-run --Werror $(SOURCES)
	codespell
	shellcheck scripts/*.sh .ci/run
	python3 scripts/check_text.py
	python3 tests/layers_test.py
	cmake --preset clang
	cmake --build --preset clang --parallel $(JOBS)
	run-clang-tidy -quiet -p build/clang -j $(JOBS) \
	  '/build/clang/(CMakeFiles|cli|demo|examples)/' '$(CURDIR)/(src|cli|demo|examples)/.*\.cc$$'

clean:
	rm -rf build
