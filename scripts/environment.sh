# Sourced by the other scripts: makes the checkout's own .venv and keeps it in step with setup.cfg.
#
# A stamp in .venv says what was installed from what, so that the next run takes no time. pip and apt-get use this
# machine's own configuration.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=$ROOT/.cache

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $1"
    shift
    local line
    for line in "$@"; do say "       $line"; done
    exit 1
}

# quietly TEXT COMMAND..: runs the command; its output is shown only when it fails.
quietly() {
    local text=$1 log
    shift
    say "- $text"
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        rm -f "$log"
        fail "could not $text" "The command was: $*"
    fi
    rm -f "$log"
}

# find_python: sets PYTHON to a Python of 3.10 or later (MARRAM_PYTHON chooses one).
find_python() {
    local candidate
    for candidate in "${MARRAM_PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            PYTHON=$(command -v "$candidate")
            return
        fi
    done
    return 1
}

# has NAME: whether the command (or, with a name in .h, the C header) is on this machine.
has() {
    case $1 in
    # Debian puts mosquitto into /usr/sbin, which is not on every user's path.
    *.h) printf '#include <%s>\n' "$1" | gcc -E - >/dev/null 2>&1 ;;
    *) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

# missing_packages NAME:PACKAGE..: the Debian packages whose commands or headers are not on this machine.
missing_packages() {
    local pair
    if ! find_python; then
        printf 'python3 python3-venv '
    elif ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
        printf 'python3-venv '
    fi
    for pair in "$@"; do
        has "${pair%%:*}" || printf '%s ' "${pair##*:}"
    done
}

# need NAME:PACKAGE..: stops, naming the packages that are missing.
need() {
    local missing
    if ! find_python && has python3; then
        fail "$(python3 -V 2>&1) is too old: Marram needs 3.10 or later" "MARRAM_PYTHON=/path/to/python names another one."
    fi
    missing=$(missing_packages "$@")
    [ -z "$missing" ] || fail "this machine lacks: $missing" "On Debian or Ubuntu: sudo apt-get install $missing"
}

# need_or_install NAME:PACKAGE..: the same, but installs them where it may (as root, with apt-get).
need_or_install() {
    local missing
    missing=$(missing_packages "$@")
    if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        quietly "refresh the list of Debian packages" apt-get -qq update
        # A package that starts a service would take the broker's port: the tests start their own.
        # shellcheck disable=SC2086
        quietly "install $missing" without_services apt-get -qq -y --no-install-recommends install $missing
    fi
    need "$@"
}

# without_services COMMAND..: keeps Debian's packages from starting a service while the command runs.
without_services() {
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        ours=yes
    fi
    local result=0
    DEBIAN_FRONTEND=noninteractive "$@" || result=$?
    [ -z "$ours" ] || rm -f "$policy"
    return $result
}

# stamp EXTRAS: what an installation depends on, as one line.
stamp() {
    cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$ROOT/scripts/environment.sh" "$ROOT/agent/environments/recipes.py" \
        <(grep __version__ "$ROOT/agent/__init__.py") <(printf '%s\n' "$1" "$ROOT" "$("$PYTHON" -V)") | sha256sum | cut -d' ' -f1
}

# compile_sources: what pip does for an installation and leaves undone for an editable one. Workers write no bytecode (-B): what
# they alone import would be compiled again at each start, 50 ms.
compile_sources() {
    "$VENV/bin/python" -m compileall -q "$ROOT/agent" "$ROOT/functions" >&2 || say "some sources cannot be compiled"
}

# install NAME EXTRAS: puts marram with these extras, dlr and ONNX Runtime into .venv, unless that is done.
install() {
    local name=$1 extras=$2 file=$VENV/.marram-$1 now
    find_python || fail "Python 3.10 or later is needed"
    now=$(stamp "$extras")
    if [ -x "$VENV/bin/marram" ] && [ "$(cat "$file" 2>/dev/null)" = "$now" ]; then
        compile_sources
        return
    fi
    # A virtual environment does not survive a move, nor its Python's end.
    if ! "$VENV/bin/python" -c "import sys; sys.exit(sys.prefix != '$VENV')" 2>/dev/null; then
        rm -rf "$VENV"
        quietly "make the virtual environment .venv" "$PYTHON" -m venv "$VENV"
    fi
    rm -f "$file"
    quietly "install marram [$extras] into .venv (a minute or two, once)" \
        "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --editable "$ROOT[$extras]"
    quietly "install dlr and libdlr into .venv" "$ROOT/scripts/install-runtime" dlr "$VENV"
    quietly "install ONNX Runtime into .venv" "$ROOT/scripts/install-runtime" onnx "$VENV"
    compile_sources
    printf '%s\n' "$now" >"$file"
}

# install_environments NAME..: makes an environment below .venvs for each of these runtimes, side by side, unless it is made.
# None of them can live in .venv: MXNet needs an old numpy, TensorFlow brings 1.5 GB.
install_environments() {
    local name running=() failed=
    find_python || fail "Python 3.10 or later is needed"
    for name in "$@"; do
        install_environment "$name" &
        running+=($!)
    done
    for name in "${running[@]}"; do
        wait "$name" || failed=1
    done
    [ -z "$failed" ] || exit 1
}

install_environment() {
    local name=$1 place=$ROOT/.venvs/$1 now
    now=$(environment_stamp "$name")
    if [ "$(cat "$place/.marram" 2>/dev/null)" = "$now" ] && "$place/bin/python" -c pass 2>/dev/null; then return; fi
    mkdir -p "$ROOT/.venvs"
    rm -rf "$place" "$place.unfit"
    say "- install $name into .venvs/$name (half a minute, once)"
    local log
    log=$(mktemp)
    if "$ROOT/scripts/install-runtime" "$name" >"$log" 2>&1; then
        printf '%s\n' "$now" >"$place/.marram"
    elif grep -q PYTHON_UNFIT "$log"; then
        # The tests that need it say so when they skip; any other failure is one.
        grep PYTHON_UNFIT "$log" | tee "$place.unfit" >&2
    else
        tail -n 40 "$log" >&2
        fail "could not install $name into .venvs/$name"
    fi
    rm -f "$log"
}

environment_stamp() {
    cat "$ROOT/agent/environments/recipes.py" <(printf '%s\n' "$1" "$ROOT" "$("$PYTHON" -V)") | sha256sum | cut -d' ' -f1
}

# fetch_recordings: the smart-watch recordings that the demonstration replays come inside the wheel of aeon, which is read
# as a file and never installed.
fetch_recordings() {
    ls "$CACHE"/aeon-1.6.0-*.whl >/dev/null 2>&1 && return
    mkdir -p "$CACHE"
    quietly "download the smart-watch recordings" \
        "$VENV/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps --dest "$CACHE" aeon==1.6.0
}

# fetch_for_capture: what the tests of capture and scripts/circle read out of wheels that are never installed: the original
# ML Feedback connector's sampling strategies, and scikit-learn's copy of the digits (UCI, E. Alpaydin and C. Kaynak, 1998).
fetch_for_capture() {
    ls "$CACHE"/feedbackloop-1.0.2-*.whl "$CACHE"/scikit_learn-1.7.2-*.whl >/dev/null 2>&1 && return
    mkdir -p "$CACHE"
    quietly "download the original's sampling strategies and the digits" \
        "$VENV/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps --dest "$CACHE" \
        feedbackloop==1.0.2 scikit-learn==1.7.2
}
