# Two commands for a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
BUNDLE  = bundles/microscopy
DEMO    = demo

# A small network and a short run: three minutes of training on two cores. It shows that everything works and learns, no
# more: `make demo NETWORK= RUN=` is the paper's network and schedule.
NETWORK = --network_def\#feature_size 32 --network_def\#depths "[1,1,1,1]" --network_def\#decoder_depths "[1,1,1]"
RUN     = --roi_size "[128,128]" --max_epochs 12 --iterations_per_epoch 50 --batch_size 4 --learning_rate 0.002 \
	--val_interval 4 --log_interval 25 --num_workers 1
PATHS   = --bundle_root $(BUNDLE) --dataset_dir $(DEMO)/data

.PHONY: demo test fuzz kills bundles verify package lint label test-label clean

demo: $(VENV)/demo
	rm -rf $(DEMO)
	$(BIN)/python -m swinumamba_monai synthesize microscopy --output_dir $(DEMO)/data
	$(BIN)/python -m monai.bundle run training --config_file $(BUNDLE)/configs/train.json \
		$(PATHS) $(NETWORK) $(RUN) --ckpt_dir $(DEMO)/models --output_dir $(DEMO)/training
	$(BIN)/python -m monai.bundle run evaluating --config_file "['$(BUNDLE)/configs/train.json','$(BUNDLE)/configs/evaluate.json']" \
		$(PATHS) $(NETWORK) --roi_size "[256,256]" --ckpt_dir $(DEMO)/models --output_dir $(DEMO)/evaluation
	$(BIN)/python -m monai.bundle run inference --config_file $(BUNDLE)/configs/inference.json \
		$(PATHS) $(NETWORK) --roi_size "[256,256]" --ckpt_path $(DEMO)/models/model.pt --output_dir $(DEMO)/predictions
	$(BIN)/python -m swinumamba_monai predict microscopy docs/images/examples --output_dir $(DEMO)/shipped
	@echo
	@echo "metrics of each test image:      $(DEMO)/evaluation/metrics.csv"
	@echo "image, truth and prediction:     $(DEMO)/evaluation/predictions.png"
	@echo "instance maps of the test images: $(DEMO)/predictions"
	@echo "two real images, outlined by the network that ships: $(DEMO)/shipped"

# Two processes, each with whole files of tests, because a file's tests share what is slow to make. A test that crashes
# its process, or waits until setup.cfg ends that, would be tried again in the next, so it ends the run.
WORKERS = 2
test: $(VENV)/test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0

# Damaged files of every format, and whole ones with strange insides, for as long as you like; in `make test` for half a
# minute.
SECONDS = 600
fuzz: $(VENV)/test
	SWINUMAMBA_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/test_fuzz.py

# Every command killed at random moments, and run again; the folder must not be there. Half a minute a kill.
KILLS = 200
kills: $(VENV)/test
	$(BIN)/python tests/kills.py $(KILLS) kills

# The bundles are made of bundle_sources/, where each fact stands once.
bundles: $(VENV)/test
	$(BIN)/python bundle_sources/render.py

# The model zoo's checks on the three bundles, with their networks in full size; `make test` takes small ones.
verify: $(VENV)/test
	$(BIN)/python -m swinumamba_monai verify bundles/abdomen_mri bundles/endoscopy bundles/microscopy

package: $(VENV)/test
	for bundle in abdomen_mri endoscopy microscopy; do \
		$(BIN)/python -m swinumamba_monai package bundles/$$bundle --output_dir dist || exit 1; done

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# torch comes first and alone, from constraints.txt, so that no other package chooses its build.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	touch $@

$(VENV)/demo: $(VENV)/torch setup.cfg
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[cpu]"
	touch $@

$(VENV)/test: $(VENV)/torch setup.cfg
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[cpu,dev]"
	touch $@

# MONAI Label in an environment of its own: make label TASK=microscopy STUDIES=my_images
TASK    ?= microscopy
LABEL    = .venv-label
label: $(LABEL)/ready
	$(LABEL)/bin/python -m swinumamba_monai serve bundles/$(TASK) --studies $(STUDIES)

test-label: $(LABEL)/ready $(VENV)/test
	SWINUMAMBA_LABEL_PYTHON=$(abspath $(LABEL)/bin/python) $(BIN)/python -m pytest tests/serving

# Without its dependencies, because they ask for packages that need a CUDA build of torch or an older numpy, and that
# nothing here uses (SAM 2, MLflow, LMDB); label-requirements.txt has those that the server imports.
$(LABEL)/ready: label-requirements.txt constraints.txt setup.cfg
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(LABEL)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[cpu]" -r label-requirements.txt
	$(LABEL)/bin/python -m pip install -q --disable-pip-version-check --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
	touch $@

clean:
	rm -rf $(VENV) $(LABEL) $(DEMO) kills
