#!/bin/bash
# What scripts/package-test.sh runs in a scratch system that systemd has booted: the units, the socket,
# and what the packages' scripts do with both.
source /steps.sh

QUESTION="Tom has 4 apples and buys 3 more. How many has he now?"
is() { [[ $(systemctl is-active "$2" || true) == "$1" ]] || die "$2 is $(systemctl is-active "$2" || true), not $1"; }
main_pid() { systemctl show --property=MainPID --value reflectd.service; }
# The process of the service runs the program that is installed now.
is_installed_program() { cmp -s "/proc/$(main_pid)/exe" /usr/bin/reflectd || die "the service does not run /usr/bin/reflectd"; }
# Another process than before; a restart may be under way.
restarted() {
  for _ in $(seq 300); do
    [[ $(main_pid) != 0 && $(main_pid) != "$1" && $(systemctl is-active reflectd.service) == active ]] && return
    sleep 0.1
  done
  die "the service was not started again"
}

step "systemd: a first installation of the release before starts nothing"
install_packages /packages/before/*.deb
configure
is inactive reflectd.socket
is inactive reflectd.service

step "systemd: the first client starts the daemon by its socket"
words 0 systemctl enable --now reflectd.socket reflectd.socket
is active reflectd.socket
is inactive reflectd.service
words 0 reflectd ask --socket /run/reflectd/reflectd.sock --mode off "$QUESTION"
is active reflectd.service
is_installed_program

step "systemd: an upgrade starts the running service again"
before=$(main_pid)
install_packages /packages/new/*.deb
# It waits at the socket until the new daemon answers.
words 0 reflectd ask --mode off "$QUESTION"
restarted "$before"
is_installed_program
words 0 systemd-analyze verify --man=no reflectd.service reflectd.socket
[[ ! -s /words ]] || die "the units have faults"
words 0 env HOME=/root XDG_RUNTIME_DIR=/run systemd-analyze verify --man=no --user reflectd.service reflectd.socket
[[ ! -s /words ]] || die "the user's units have faults"

step "systemd: a reload keeps the process, after a crash there is another one"
before=$(main_pid)
words 0 systemctl reload reflectd.service
for _ in $(seq 100); do
  journalctl -o cat -u reflectd.service >/words
  grep -q "Reloaded the configuration" /words && break
  sleep 0.1
done
expect "Reloaded the configuration"
[[ $(main_pid) == "$before" ]] || die "the reload started another process"
words 0 systemctl kill --signal=KILL --kill-whom=main reflectd.service
words 0 reflectd ask --mode off "$QUESTION"
restarted "$before"

step "systemd: the service explores and trains inside the limits of its unit"
prompts
words 0 reflectd explore --prompts /prompts.jsonl --n 4 --m 2
words 0 reflectd train
expect "was promoted: generation 1"

step "systemd: a removal stops and disables both units"
dpkg -r reflectd-trainer reflectd >/dpkg.log 2>&1 || die "dpkg -r: $(tail -n 5 /dpkg.log)"
is inactive reflectd.socket
is inactive reflectd.service
[[ ! -e /etc/systemd/system/sockets.target.wants/reflectd.socket ]] || die "the socket is still enabled"
step "passed with systemd"
