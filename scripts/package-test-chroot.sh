#!/bin/bash
# What scripts/package-test.sh runs in a scratch system without systemd: the release before is installed,
# used and upgraded; another user chats; the trainer comes and goes; a purge keeps the state.
source /steps.sh
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
useradd --uid 4242 --create-home --home-dir /srv/guest guest
useradd --uid 4343 --create-home --home-dir /srv/visitor visitor

# As the unit starts it: user, command line, umask, runtime folder.
start() {
  local line
  line=$(sed -n 's/^ExecStart=//p' /usr/lib/systemd/system/reflectd.service)
  [[ $line == /usr/bin/* ]] || die "the unit starts $line"
  install -d -o reflectd -g reflectd -m 0755 /run/reflectd
  # shellcheck disable=SC2086 # The line of the unit has no quotes.
  (umask 077 && exec setpriv --reuid reflectd --regid reflectd --init-groups --no-new-privs \
    env -i RUNTIME_DIRECTORY=/run/reflectd PATH=/usr/bin:/bin $line >/daemon.log 2>&1) &
  daemon=$!
  for _ in $(seq 600); do
    reflectd status --socket /run/reflectd/reflectd.sock >/dev/null 2>&1 && return
    kill -0 $daemon 2>/dev/null || die "the daemon ended"
    sleep 0.1
  done
  die "the daemon does not answer on /run/reflectd/reflectd.sock"
}
stop() {
  kill $daemon
  wait $daemon || die "the daemon ended with $?"
}
status_json() { reflectd status --json --socket /run/reflectd/reflectd.sock; }
field() { grep -oE "\"$1\":[0-9]+" | head -n 1 | cut -d: -f2; }

# --- the release before, used -------------------------------------------------------------------
step "install the release before: $(cd /packages/before && echo *)"
install_packages /packages/before/*.deb
configure
prompts
start
words 0 reflectd explore --socket /run/reflectd/reflectd.sock --prompts /prompts.jsonl --n 4 --m 2
words 0 reflectd train --socket /run/reflectd/reflectd.sock
expect "was promoted: generation 1"
words 0 as guest reflectd ask --socket /run/reflectd/reflectd.sock --mode off "Tom has 2 apples and buys 3 more. How many has he now?"
before=$(status_json)
stop
exchanges=$(field exchanges <<<"$before")
[[ $(field active <<<"$before") == 1 && $exchanges -ge 40 ]] || die "the state is not used: $before"

# --- upgrade --------------------------------------------------------------------------------------
step "upgrade to $(cd /packages/new && echo *)"
install_packages /packages/new/*.deb
[[ -z $(dpkg --audit) ]] || die "dpkg --audit: $(dpkg --audit)"
grep -q 'allow_uids: \[4242\]' /etc/reflectd/reflectd.yaml || die "the owner's configuration is not kept"
words 0 reflectd check --root /etc/reflectd
[[ $(stat -c '%U %a' /var/lib/reflectd) == "reflectd 700" ]] || die "/var/lib/reflectd: $(stat -c '%U %a' /var/lib/reflectd)"
for page in man/man1/reflectd.1.gz man/man1/reflectd-trainer.1.gz bash-completion/completions/reflectd zsh/vendor-completions/_reflectd fish/vendor_completions.d/reflectd.fish; do
  [[ -f /usr/share/$page ]] || die "/usr/share/$page is missing"
done
start
after=$(status_json)
[[ $(field active <<<"$after") == 1 && $(field exchanges <<<"$after") == "$exchanges" ]] || die "the state was not kept: $after"

step "another user chats without a network, a visitor does not"
words 0 as guest reflectd ask --mode off "Tom has 4 apples and buys 3 more. How many has he now?"
words 1 as visitor reflectd status
expect "user id 4343 may not use this socket"

step "the trainer goes and comes"
dpkg -r reflectd-trainer >/dev/null
missing="package reflectd-trainer adds it"
words 1 reflectd train
expect "$missing"
words 0 reflectd status
expect "$missing"
words 0 reflectd doctor --root /etc/reflectd
expect "$missing"
words 0 reflectd explore --prompts /prompts.jsonl --limit 2
words 0 reflectd export merged --out /tmp/merged
[[ -s $(find /tmp/merged -name '*.gguf') ]] || die "nothing was exported"
install_packages /packages/new/reflectd-trainer_*.deb
words 0 reflectd doctor --root /etc/reflectd --pair 16,8
expect "trainable +yes"
words 0 reflectd train
stop

step "the user's own service, with the packaged configuration as it is"
install -d -o guest -g guest -m 0700 /run/user/4242
as guest bash -c 'mkdir -p ~/.config && cp -R /usr/share/reflectd ~/.config/reflectd'
line=$(sed -n 's|%E|/srv/guest/.config|; s|%h|/srv/guest|; s|^ExecStart=||p' /usr/lib/systemd/user/reflectd.service)
grep -q '^RuntimeDirectory=reflectd' /usr/lib/systemd/user/reflectd.service || die "the user's unit has no runtime folder"
install -d -o guest -g guest -m 0700 /run/user/4242/reflectd
# shellcheck disable=SC2086 # The line of the unit has no quotes.
(umask 077 && exec setpriv --reuid guest --regid guest --init-groups --no-new-privs \
  env -i HOME=/srv/guest RUNTIME_DIRECTORY=/run/user/4242/reflectd PATH=/usr/bin:/bin $line >/daemon.log 2>&1) &
daemon=$!
for _ in $(seq 600); do
  [[ -S /run/user/4242/reflectd/reflectd.sock ]] && break
  sleep 0.1
done
words 0 as guest XDG_RUNTIME_DIR=/run/user/4242 reflectd ask --mode off "Tom has 5 apples and buys 3 more. How many has he now?"
words 0 as guest XDG_RUNTIME_DIR=/run/user/4242 reflectd status --root /srv/guest/.config/reflectd
stop

# --- the end --------------------------------------------------------------------------------------
step "purge keeps the state"
database=$(sha256sum /var/lib/reflectd/reflectd.db)
dpkg -r reflectd-trainer reflectd >/dev/null
dpkg -P reflectd reflectd-trainer >/dpkg.log 2>&1 || die "purge: $(cat /dpkg.log)"
[[ $(sha256sum /var/lib/reflectd/reflectd.db) == "$database" ]] || die "the purge changed the state"
grep -q "/var/lib/reflectd stays" /dpkg.log || die "the purge does not say that the state stays"
[[ ! -e /usr/bin/reflectd && ! -e /usr/lib/reflectd && ! -e /etc/reflectd/reflectd.yaml ]] || die "something was left behind"
install_packages /packages/new/reflectd_*.deb
grep -q '^ *learning_rate: 0.001$' /etc/reflectd/reflectd.yaml || die "the default configuration lacks the nano model's learning rate"
words 0 reflectd check --root /etc/reflectd
start
[[ $(field active <<<"$(status_json)") -ge 1 ]] || die "the kept state is not served"
stop
step "passed without systemd"
