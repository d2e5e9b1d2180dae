#!/usr/bin/env bash
# Finds compilers for the guests, or makes them.
#
#   eval "$(scripts/wasm-toolchain.sh rust)"   sets RUSTC and PATH for cargo, and WASM_RUST (what it is and why)
#   eval "$(scripts/wasm-toolchain.sh c)"      sets WASM_CC (a command line) and WASM_C (what it is and why)
#
# Rust: 1. the rustc on PATH when it builds both wasm32-wasip1 and wasm32-wasip2 (rustup, Nix, Fedora...);
#       2. the same after `rustup target add`, where rustup may fetch;
#       3. Debian's own rustc, unpacked into the cache, no root needed.
# C:    1. $WASI_SDK_PATH;  2. Debian's clang and wasi-libc, unpacked (a third of zig's size, and faster);
#       3. the ziglang package of PyPI.
#
# The first that compiles a probe wins, and the choice is kept in the cache until rustc or this script changes.
#   WASILET_CACHE       the cache, default target/wasm-toolchain
#   WASILET_TOOLCHAIN   leave out all but one of: path, rustup, debian, wasi-sdk, zig
#   WASILET_SUITES      Debian's suites to look in, default "sid": the guests' crates ask for a rustc younger than stable's
set -euo pipefail
# shellcheck source=lib/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=lib/debian.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib/debian.sh"

TARGETS=(wasm32-wasip1 wasm32-wasip2)
# The linker that turns a core module into a component; rustup brings it along, Debian does not ship it.
COMPONENT_LD_VERSION=0.5.31
ONLY=${WASILET_TOOLCHAIN:-}
WHY_DEBIAN='as rustup cannot give the targets here'
if [ "$ONLY" = debian ]; then WHY_DEBIAN='as WASILET_TOOLCHAIN asks'; fi
read -ra SUITES <<<"${WASILET_SUITES:-sid}"

allowed() { [ -z "$ONLY" ] || [ "$ONLY" = "$1" ]; }

# --- Rust ---------------------------------------------------------------------------------------------------------

# Does RUSTC (with PATH as given) compile and link for both targets? Proof by doing.
#   rust_works RUSTC PATH
rust_works() {
    local directory target status=0
    directory=$(mktemp -d -- "$CACHE/probe.XXXXXX")
    printf 'fn main() { println!("{:?}", std::env::args()); }\n' >"$directory/probe.rs"
    for target in "${TARGETS[@]}"; do
        if ! PATH=$2 "$1" --edition 2024 --target "$target" -o "$directory/$target.wasm" "$directory/probe.rs" \
            >"$CACHE/probe.log" 2>&1; then
            status=1
            break
        fi
    done
    rm -rf -- "$directory"
    return $status
}

# Prints the assignments that a caller evaluates, and keeps them for as long as KEY and DIRECTORY stay.
#   chosen FILE KEY DIRECTORY NAME=VALUE...
chosen() {
    local file=$1 key=$2 directory=$3 pair
    shift 3
    {
        printf '# key: %s\n# directory: %s\n' "$key" "$directory"
        for pair in "$@"; do printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"; done
    } >"$file.new"
    mv -- "$file.new" "$file"
    cat -- "$file"
}

rust_from_path() {
    allowed path && have rustc || return 1
    rust_works rustc "$PATH" || return 1
    chosen "$1" "$2" / "WASM_RUST=$(rustc -V) on PATH, which has ${TARGETS[*]}"
}

rust_from_rustup() {
    allowed rustup && have rustup && have rustc || return 1
    say "rust: adding ${TARGETS[*]} by rustup"
    quietly "$CACHE/rustup.log" timeout 120 rustup target add "${TARGETS[@]}" || return 1
    rust_works rustc "$PATH" || { say "  added, but a probe does not link"; return 1; }
    chosen "$1" "$2" / "WASM_RUST=$(rustc -V), its targets added by rustup"
}

rust_from_debian() {
    local suite root path
    allowed debian || return 1
    for suite in "${SUITES[@]}"; do
        say "rust: taking Debian $suite's compiler, $WHY_DEBIAN"
        root=$(debian_unpack "$suite" rust rustc libstd-rust-dev-wasm32 lld) || continue
        debian_wrap "$root" usr/bin/rustc rustc --sysroot "$root/usr" || continue
        debian_wrap "$root" "$(llvm_program "$root" lld)" wasm-ld || continue
        # rustc calls wasip1's linker by this name.
        debian_wrap "$root" "$(llvm_program "$root" lld)" rust-lld || continue
        component_ld "$root" || continue
        path=$root/bin.wasilet:$PATH
        rust_works "$root/bin.wasilet/rustc" "$path" || { say "  a probe does not link"; tail -n 5 "$CACHE/probe.log" >&2; continue; }
        chosen "$1" "$2" "$root" "RUSTC=$root/bin.wasilet/rustc" "PATH=$path" \
            "WASM_RUST=$("$root/bin.wasilet/rustc" -V) of Debian $suite, unpacked in $root, $WHY_DEBIAN"
        return 0
    done
    return 1
}

# The newest of an unpacked program, relative to its root: Debian has one per LLVM version.
#   llvm_program ROOT NAME
llvm_program() { (cd -- "$1" && find usr/lib -path "usr/lib/llvm-*/bin/$2" | sort -V | tail -n 1); }

# A debug build: it takes a fifth of the time and links our guests as quickly.
component_ld() {
    local root=$1 directory=$CACHE/wasm-component-ld-$COMPONENT_LD_VERSION temporary
    if [ ! -x "$directory/bin/wasm-component-ld" ]; then
        say "  building wasm-component-ld $COMPONENT_LD_VERSION (half a minute)"
        temporary=$(mktemp -d -- "$CACHE/component-ld.XXXXXX")
        if ! CARGO_TARGET_DIR=$temporary/target CARGO_PROFILE_DEV_DEBUG=0 RUSTFLAGS='' quietly "$CACHE/component-ld.log" \
            "${CARGO:-cargo}" install --debug --locked --root "$temporary/out" \
            --version "$COMPONENT_LD_VERSION" wasm-component-ld; then
            rm -rf -- "$temporary"
            return 1
        fi
        publish "$temporary/out" "$directory"
        rm -rf -- "$temporary"
    fi
    ln -sfn -- "$directory/bin/wasm-component-ld" "$root/bin.wasilet/wasm-component-ld"
}

# --- C ------------------------------------------------------------------------------------------------------------

# Does this command line compile and link a program?
c_works() {
    local directory status=0
    directory=$(mktemp -d -- "$CACHE/probe.XXXXXX")
    printf '#include <stdio.h>\nint main(void) { return puts("probe") < 0; }\n' >"$directory/probe.c"
    (cd -- "$directory" && sh -c "$1 -Os -o probe.wasm probe.c") >"$CACHE/probe.log" 2>&1 || status=1
    rm -rf -- "$directory"
    return $status
}

c_from_wasi_sdk() {
    allowed wasi-sdk && [ -n "${WASI_SDK_PATH:-}" ] || return 1
    local command
    printf -v command '%q --target=wasm32-wasip1' "$WASI_SDK_PATH/bin/clang"
    c_works "$command" || { say "c: WASI_SDK_PATH is set, but its clang does not link a probe"; return 1; }
    chosen "$1" "$2" "$WASI_SDK_PATH" "WASM_CC=$command" "WASM_C=wasi-sdk of WASI_SDK_PATH"
}

c_from_debian() {
    local suite root clang command
    allowed debian || return 1
    for suite in "${SUITES[@]}"; do
        say "c: taking Debian $suite's clang and wasi-libc"
        root=$(debian_unpack "$suite" clang clang lld wasi-libc libclang-rt-dev-wasm32) || continue
        clang=$(llvm_program "$root" clang)
        debian_wrap "$root" "$(llvm_program "$root" lld)" wasm-ld || continue
        debian_wrap "$root" "$clang" clang || continue
        # The driver starts itself again for each file and looks for its parts beside itself; /proc/self/exe, where it
        # would look, is the loader. So: itself by the wrapper's name, and every part named.
        printf -v command '%q ' "$root/bin.wasilet/clang" -no-canonical-prefixes --target=wasm32-wasi \
            "--sysroot=$root/usr" -resource-dir "$(ls -d "$root/${clang%/bin/clang}"/lib/clang/*)" \
            "-fuse-ld=$root/bin.wasilet/wasm-ld"
        c_works "$command" || { say "  a probe does not link"; tail -n 5 "$CACHE/probe.log" >&2; continue; }
        chosen "$1" "$2" "$root" "WASM_CC=$command" "WASM_C=clang and wasi-libc of Debian $suite, unpacked in $root"
        return 0
    done
    return 1
}

c_from_zig() {
    local directory=$CACHE/ziglang temporary command
    allowed zig && have python3 || return 1
    if [ ! -e "$directory" ]; then
        say "c: taking ziglang from PyPI (100 MiB)"
        temporary=$(mktemp -d -- "$CACHE/zig.XXXXXX")
        if ! quietly "$CACHE/zig.log" python3 -m pip install --quiet --no-deps --target "$temporary" ziglang; then
            rm -rf -- "$temporary"
            return 1
        fi
        publish "$temporary" "$directory"
    fi
    printf -v command 'ZIG_GLOBAL_CACHE_DIR=%q %q cc --target=wasm32-wasi' "$CACHE/zig-cache" "$directory/ziglang/zig"
    c_works "$command" || { say "  a probe does not link"; return 1; }
    chosen "$1" "$2" "$directory" "WASM_CC=$command" "WASM_C=zig cc of PyPI's ziglang"
}

# --- The choice ---------------------------------------------------------------------------------------------------

# What the choice depends on: the compiler on PATH, the wishes, and how this script chooses.
key() {
    { rustc -vV 2>/dev/null || true; rustc --print target-libdir --target wasm32-wasip2 2>/dev/null || true
        printf '%s\n' "$ONLY" "${SUITES[*]}" "${WASI_SDK_PATH:-}" "$CACHE"
        cat -- "${BASH_SOURCE[0]}" "$REPO/scripts/lib/debian.sh"; } | sha256sum | cut -c 1-16
}

choose() {
    local language=$1 file=$CACHE/$1.env now kept_key='' directory=''
    mkdir -p -- "$CACHE"
    now=$(key)
    if [ -e "$file" ]; then
        { read -r _ _ kept_key && read -r _ _ directory; } <"$file"
        if [ "$kept_key" = "$now" ] && [ -d "$directory" ]; then
            cat -- "$file"
            return 0
        fi
    fi
    # One at a time: two that unpack would only do it twice.
    exec 9>"$CACHE/.lock"
    if have flock; then flock 9; fi
    case $language in
        rust)
            rust_from_path "$file" "$now" || rust_from_rustup "$file" "$now" || rust_from_debian "$file" "$now" ||
                die "no Rust compiler for ${TARGETS[*]}: 'rustup target add ${TARGETS[*]}' failed and this machine's apt cannot provide Debian's (logs in $CACHE)" ;;
        c)
            c_from_wasi_sdk "$file" "$now" || c_from_debian "$file" "$now" || c_from_zig "$file" "$now" ||
                die "no C compiler for WASI: set WASI_SDK_PATH, or use a machine with apt (Debian) or python3 with pip (logs in $CACHE)" ;;
    esac
}

case ${1:-} in
    rust | c) choose "$1" ;;
    *) die "usage: eval \"\$(scripts/wasm-toolchain.sh rust|c)\"" ;;
esac
