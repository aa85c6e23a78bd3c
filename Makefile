# Everything happens in .venv; nothing is installed outside this folder.
PYTHON ?= python3
PIP_FLAGS ?=
NB ?=

PY := .venv/bin/python
READY := .venv/.ready
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# A copied or moved folder brings a .venv that still points to the old place.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): elsewhere
endif

.PHONY: help setup lab style check test draws student notebooks book browser zoo results bench-train \
  bench-clp bench-attacks bench-defenses clean elsewhere
.DELETE_ON_ERROR:

help:
	@echo 'make lab          open your copies of the lessons in JupyterLab (sets it up first)'
	@echo 'make setup        install the course into .venv, nothing else'
	@echo 'make check        run what takes a minute: style, guards, quick units'
	@echo 'make test         run every test: style, units, lessons, book'
	@echo 'make draws        try the checks of exercises with other random draws (an hour)'
	@echo 'make notebooks    make the .ipynb files anew from their .py files;'
	@echo '                  NB="05_clp --force" chooses lessons or runs fresh ones too'
	@echo 'make student      copies of the lessons without answers, or updates of yours'
	@echo 'make book         build the book into _build/html and check it'
	@echo 'make browser      try a lesson in a real browser; needs Chromium or Chrome'
	@echo 'make zoo          train the victims of the lessons again'
	@echo 'make results      measure the tables of data/results again (hours)'
	@echo 'make bench-train  measure training'
	@echo 'make bench-clp    measure channel pruning'
	@echo 'make bench-attacks  measure poisoning, images per second'
	@echo 'make bench-defenses  measure the defenses against plain loops'
	@echo 'make clean        delete caches and built files; .venv and data stay'
	@echo
	@echo 'PYTHON=python3.12 chooses the Python for .venv, 3.10 or newer.'

# --- Set-up ----------------------------------------------------------------------

# .installing marks a .venv in which pip was stopped half-way: it is made afresh. Where
# pip itself gave up, say without a network, what was there before still works.
$(READY): pyproject.toml constraints.txt
	@if [ -e .venv/.installing ] || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  command -v '$(PYTHON)' >/dev/null || { \
	    echo 'There is no $(PYTHON) here: install Python 3.10 or newer, or name one' \
	      'with PYTHON=...' >&2; exit 1; }; \
	  '$(PYTHON)' -c 'import sys; sys.version_info >= (3, 10) or sys.exit("The course" \
	    " needs Python 3.10 or newer, this is " + sys.version.split()[0] + \
	    ": name another with PYTHON=...")' || exit 1; \
	  '$(PYTHON)' -c 'import venv, ensurepip' 2>/dev/null || { \
	    echo 'This Python cannot make virtual environments: on Debian and Ubuntu,' \
	      'install the package python3-venv.' >&2; exit 1; }; \
	  '$(PYTHON)' -m venv --clear .venv || exit 1; \
	fi
	@rm -f $(READY)
	@touch .venv/.installing
	$(PY) -m pip install --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e '.[dev]' || { rm .venv/.installing; exit 1; }
	@rm .venv/.installing
	@echo '$(CURDIR)' > $(READY)

.venv/.browser: $(READY)
	$(PY) -m pip install --disable-pip-version-check $(PIP_FLAGS) \
	  -c constraints.txt -e '.[browser]'
	@touch $@

setup: $(READY)
	@echo 'The course is set up. Next: make lab'

# --- For readers -----------------------------------------------------------------

# JupyterLab refuses root unless told, and takes the next free port by itself. By the
# settings in tools/lab it shows pages as pages, and neither news nor nbgrader's menus.
lab: $(READY)
	@$(PY) -m bdcourse labs student >/dev/null || true
	@set --; \
	if [ "$$(id -u)" = 0 ]; then set -- --allow-root; fi; \
	if [ "$$(uname)" != Darwin ] && [ -z "$$DISPLAY$$WAYLAND_DISPLAY" ]; then \
	  echo 'No display here: open the address that appears below in a browser.'; \
	  set -- "$$@" --no-browser; \
	fi; \
	exec $(PY) -m jupyterlab "$$@" --ServerApp.root_dir=. \
	  --ContentsManager.pre_save_hook=bdcourse.teach.labs.tidy \
	  --LabApp.app_settings_dir="$(CURDIR)/tools/lab" \
	  --LabApp.default_url=/lab/tree/student/START.md

student: $(READY)
	$(PY) -m bdcourse labs student

book: $(READY)
	$(PY) tools/check_book.py

# --- For authors -----------------------------------------------------------------

# A test file, or a lesson, is one process's from its first line to its last.
SPREAD = OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile \
  --durations 10
UNITS = $(SPREAD) -p no:nbval --no-loadscope-reorder

style: $(READY)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

check: style
	$(UNITS) -m 'not slow and not browser'

test: style
	$(PY) -m pytest -p no:nbval -n 2 --dist load tests/test_memory_format.py
	$(UNITS) --ignore tests/test_memory_format.py
	$(SPREAD) --nbval --nbval-current-env --nbval-cell-timeout 300 notebooks
	$(PY) tools/check_book.py

# The checks of exercises with twenty other draws: right answers pass, wrong ones get their
# sentence. An hour on two cores; after a change of a check.
draws: $(READY)
	for n in $$(seq 1 20); do \
	  CHECK_DRAWS=$$n $(UNITS) -q tests/teach/test_check.py || exit 1; \
	done

notebooks: $(READY)
	$(PY) tools/notebooks.py build $(NB)

browser: .venv/.browser
	$(PY) -m pytest -m browser -rs tests/repository

zoo: $(READY)
	$(PY) -m bdcourse zoo

# Everything in data/results that needs no download; hours on two cores. A run that was
# stopped goes on where it was.
BENCH = $(PY) -m bdcourse bench --out data/results
WANET = $(BENCH)/signs-wanet.json --rate 0.2 --lr 0.05 --attacks WaNet --defenses none
FIP = none fip "fip, eta = 0" "fip, eta = 0, lr 0.05" sam "fip, released" "fast fip"
SEEDS = none fip "fip, eta = 0" sam
PREACT = none "clp, u = 3" "clp, u = 3, paired by order" "clp, u = 3, as released" \
  "clp, u = 2.5" "fmp, no maps" "fmp, p = 16, random maps"
ETAS = "fip, eta = 0.001" "fip, eta = 0.002" "fip, eta = 0.01" \
  "fip, released, eta = 0.5" "fip, random direction" "fip, exact product" \
  "fip, random direction, same lengths" "fip, gaussian" \
  "fip, gaussian, exact product" "fip, mixed norms" "fip, frozen norms" \
  "fast fip, eta = 0" "fast fip, norms fixed"
results: $(READY)
	$(BENCH)/signs.json --seeds 0 1 2
	for rate in 0.05 0.2; do \
	  $(BENCH)/signs-rates.json --seeds 0 --attacks BadNets --rate $$rate || exit; \
	done
	$(BENCH)/signs-attacks.json --width 8 --attacks all --defenses none fine-tuning
	$(BENCH)/signs-labels.json --width 8 --epochs 16 --lr 0.05 --rate 0.06 --attacks SIG \
	  --defenses none --options '{"SIG": {"craft": {"clean_label": false}}}'
	for o in '"strength": 0.5' '"strength": 0.5, "cross_rate": 0.0' '"strength": 3.0' \
	  '"strength": 3.0, "cross_rate": 0.0'; do \
	  $(WANET) --width 8 --epochs 16 --options "{\"WaNet\": {$$o}}" || exit; \
	done
	$(BENCH)/signs-wanet.json --zoo wanet wanet-plain --defenses none
	$(BENCH)/signs-defenses.json --zoo benign-w8 badnets blended trojan ssba lf sig lira \
	  tact wanet input-aware --draws 0 1 2 --defenses all
	$(BENCH)/signs-preact.json --zoo badnets-preact benign-preact --defenses $(PREACT)
	$(PY) tools/studies.py detector
	$(PY) tools/studies.py edge
	$(PY) tools/studies.py pushes
	$(BENCH)/signs-fip.json --sharp --zoo badnets-hard trojan-hard blended-hard \
	  benign-hard --defenses $(FIP)
	$(BENCH)/signs-fip.json --sharp --zoo badnets-hard trojan-hard --defenses $(ETAS)
	$(BENCH)/signs-fip.json --sharp --zoo benign-hard-plain --defenses none
	$(BENCH)/signs-fip.json --zoo badnets-hard trojan-hard blended-hard \
	  --draws 1 2 --defenses $(FIP)
	$(BENCH)/signs-fip-seeds.json --data signs-hard --width 8 --keep runs/followed \
	  --sharp --seeds 0 1 2 --attacks BadNets TrojanNN --defenses $(SEEDS)
	for how in smooth sam; do \
	  $(BENCH)/signs-aware.json --data signs-hard --width 8 --aware $$how --sharp \
	    --attacks BadNets --defenses none fip "fip, eta = 0" || exit; \
	done
	$(PY) tools/pages.py

bench-train: $(READY)
	$(PY) benchmarks/train.py

bench-clp: $(READY)
	$(PY) benchmarks/clp.py

bench-attacks: $(READY)
	$(PY) benchmarks/poisoning.py

bench-defenses: $(READY)
	for name in clp fmp anp invert fip; do $(PY) benchmarks/$$name.py || exit; done

clean:
	rm -rf _build build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	rm -rf notebooks/.ipynb_checkpoints
	find bdcourse tests tools benchmarks notebooks -name __pycache__ -prune \
	  -exec rm -rf {} +
