# What both parts of scripts/package-test.sh share inside a scratch system. They source it.
# shellcheck shell=bash
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

die() {
  echo "package-test: FAILED: $*" >&2
  if [[ -d /run/systemd/system ]]; then journalctl -o cat -n 20 -u 'reflectd*' >&2; else tail -n 20 /daemon.log >&2; fi
  exit 1
}
step() { echo "package-test: $*"; }
install_packages() { dpkg --force-confold -i "$@" >/dpkg.log 2>&1 || die "dpkg -i $*: $(tail -n 5 /dpkg.log)"; }

as() {
  local user=$1
  shift
  setpriv --reuid "$user" --regid "$user" --init-groups env -i "HOME=/srv/$user" PATH=/usr/bin:/bin "$@"
}
# Prints what the command says; its exit status may be any of those that are named.
words() {
  local allowed=$1 status=0
  shift
  "$@" >/words 2>&1 || status=$?
  [[ " $allowed " == *" $status "* ]] || die "$*: exit $status: $(cat /words)"
  cat /words
}
expect() { grep -qE -- "$1" /words || die "not said: $1; but: $(cat /words)"; }

# A run that is short and whose adapter always wins, so that there is a generation to keep.
configure() {
  cat >/etc/reflectd/reflectd.yaml <<'YAML'
default_agent: nano
server: { allow_uids: [4242] }
engine: { context_tokens: 8192, max_sequences: 32, threads: 1 }
trainer: { threads: 1, device: cpu, yield_quiet_s: 0.1 }
learn:
  optimizer: { learning_rate: 0.001, batch_pairs: 8 }
  gate: { prompts: 40, margin: -1, confidence: 0.5, truth_margin: 1, length_ratio: [0, 100], min_diversity_ratio: 0, max_kl: 100 }
YAML
  # Releases that do not know the variable of systemd need to be told.
  grep -q RUNTIME_DIRECTORY /usr/bin/reflectd ||
    sed -i 's|^server: {|server: { socket: /run/reflectd/reflectd.sock,|' /etc/reflectd/reflectd.yaml
}

# What to explore, in /prompts.jsonl.
prompts() {
  local i
  for i in $(seq 40); do
    echo "{\"id\":\"p$i\",\"prompt\":\"Tom has $((i % 9 + 1)) apples and buys $((i * 7 % 11 + 1)) more. How many has he now?\"}"
  done >/prompts.jsonl
}
