#!/usr/bin/env bash
# Builds the guests that are scripts (wasm-samples/python, wasm-samples/js) into target/guests/{python,js}-{server,command}.wasm.
# componentize-py comes from PyPI, componentize-js from npm, both pinned, into target/script-guests; WASI's interface files are
# those of the crate wasmtime-wasi-http. A language whose tools cannot be had is skipped and named, and so are its tests then.
# A second run takes no time.
#
#   scripts/script-guests.sh [python|js]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=lib/common.sh
. scripts/lib/common.sh

OUT=$REPO/target/guests
WORK=$REPO/target/script-guests
CARGO=${CARGO:-cargo}

# wit LANGUAGE: the interface files, in the version that the language's world names, with that world.
wit() {
    local dir=$WORK/wit-$1 crate version
    crate=$("$CARGO" metadata --format-version 1 --locked 2>/dev/null | python3 -c '
import json, sys
print(next(package["manifest_path"] for package in json.load(sys.stdin)["packages"] if package["name"] == "wasmtime-wasi-http"))')
    version=$(grep -m1 -o '@[0-9.]*[0-9]' "wasm-samples/$1/world.wit")
    rm -rf -- "$dir"
    mkdir -p "$dir/deps"
    cp -- "$(dirname "$crate")"/wit/deps/*.wit "$dir/deps/"
    # Within 0.2 each version has the last one's interfaces.
    sed -i -E "s/0\.2\.12/${version#@}/g" "$dir"/deps/*.wit
    cp "wasm-samples/$1/world.wit" "$dir/"
}

python_tools() {
    have python3 || { say 'SKIPPED python: no python3 on PATH'; return 1; }
    [[ ! -x $WORK/venv/bin/componentize-py || wasm-samples/python/requirements.txt -nt $WORK/venv ]] || return 0
    say 'python: componentize-py from PyPI'
    quietly "$WORK/python.log" python3 -m venv --clear "$WORK/venv" &&
        quietly "$WORK/python.log" "$WORK/venv/bin/pip" install --disable-pip-version-check -r wasm-samples/python/requirements.txt &&
        touch "$WORK/venv" || { say "SKIPPED python: componentize-py cannot be installed (log: ${WORK#"$REPO"/}/python.log)"; return 1; }
}

js_tools() {
    have node && have npm || { say 'SKIPPED js: no node and npm on PATH'; return 1; }
    mkdir -p "$WORK/js"
    [[ ! -d $WORK/js/node_modules || wasm-samples/js/package.json -nt $WORK/js/node_modules ]] || return 0
    say 'js: componentize-js from npm'
    cp wasm-samples/js/package.json "$WORK/js/"
    quietly "$WORK/js.log" npm --prefix "$WORK/js" install --no-package-lock --no-audit --no-fund && touch "$WORK/js/node_modules" ||
        { say "SKIPPED js: componentize-js cannot be installed (log: ${WORK#"$REPO"/}/js.log)"; return 1; }
}

# python_build WORLD OUT
python_build() {
    # It takes the module by its name, and so much of the folder as that imports.
    (cd wasm-samples/python && PYTHONDONTWRITEBYTECODE=1 "$WORK/venv/bin/componentize-py" -q -d "$WORK/wit-python" -w "$1" \
        componentize "$1" -o "$2")
}

js_build() {
    # Where its modules are found.
    cp wasm-samples/js/build.mjs "$WORK/js/"
    node "$WORK/js/build.mjs" "wasm-samples/js/$1.js" "$WORK/wit-js" "$1" "$2"
}

mkdir -p "$OUT" "$WORK"
for language in ${1:-python js}; do
    stamp=$WORK/.$language
    if [[ -e $stamp && -z $(find "wasm-samples/$language" "$0" Cargo.lock -newer "$stamp" -print -quit) ]] &&
        [[ -e $OUT/$language-server.wasm && -e $OUT/$language-command.wasm ]]; then
        continue
    fi
    # Nothing old is tested in place of what could not be built.
    rm -f -- "$OUT/$language-server.wasm" "$OUT/$language-command.wasm"
    "${language}_tools" || continue
    wit "$language"
    for world in server command; do
        quietly "$WORK/$language.log" "${language}_build" "$world" "$WORK/$language-$world.wasm" || die "$language-$world"
        mv -- "$WORK/$language-$world.wasm" "$OUT/"
    done
    touch "$stamp"
done
