#!/bin/sh
# A laboratory of network namespaces: a public node and two nodes behind NATs of their own.
#
#   nat.sh up NAME cone|symmetric    make it (root); NAME is unique per run, at most 8 letters and digits
#   nat.sh down NAME                 remove it, with whatever still runs inside
#   nat.sh check                     exit 0 when this machine can do it, else print why not
#
# Namespaces: NAME-p (public, 198.51.100.1), NAME-a (10.1.0.2 behind NAME-n1, 198.51.100.11),
# NAME-b (10.2.0.2 behind NAME-n2, 198.51.100.12), NAME-w (the bridge between them).
# Run a program inside with: ip netns exec NAME-a PROGRAM
#
# cone: nftables masquerade keeps the source port, so the mapping does not depend on the destination (hole punching
# works). symmetric: every connection gets a random port (it does not). Both drop what comes unasked.
set -eu

fail() { echo "nat.sh: $*" >&2; exit 1; }

check() {
    [ "$(id -u)" = 0 ] || { echo "not root"; return 1; }
    for tool in ip nft; do
        command -v "$tool" >/dev/null 2>&1 || { echo "$tool is not installed"; return 1; }
    done
    probe="ogchk$$"
    ip netns add "$probe" 2>/dev/null || { echo "network namespaces cannot be made here"; return 1; }
    why=""
    ip -n "$probe" link add v0 type veth peer name v1 2>/dev/null || why="no veth devices in this kernel"
    ip -n "$probe" link add b0 type bridge 2>/dev/null || why="no bridges in this kernel"
    nat_rules "$probe" v0 masquerade 2>/dev/null || why="no nftables masquerade in this kernel"
    ip netns del "$probe"
    [ -z "$why" ] || { echo "$why"; return 1; }
}

# namespace, wan device, masquerade statement
nat_rules() {
    ip netns exec "$1" nft -f - <<RULES
table ip nat {
    chain post { type nat hook postrouting priority 100; oifname "$2" $3; }
}
table ip filter {
    chain input { type filter hook input priority 0; policy accept;
        iifname "$2" ct state established,related accept; iifname "$2" drop; }
    chain forward { type filter hook forward priority 0; policy accept;
        iifname "$2" ct state established,related accept; iifname "$2" drop; }
}
RULES
}

# namespace, device, address, port on the bridge
plug() {
    ip link add "$2" netns "$1" type veth peer name "$4" netns "$name-w"
    ip -n "$name-w" link set "$4" master br0 up
    ip -n "$1" addr add "$3" dev "$2"
    ip -n "$1" link set "$2" up
}

# nat namespace, inner namespace, number
behind() {
    plug "$1" wan "198.51.100.1$3/24" "n$3"
    ip link add lan netns "$1" type veth peer name eth0 netns "$2"
    ip -n "$1" addr add "10.$3.0.1/24" dev lan
    ip -n "$1" link set lan up
    ip -n "$2" addr add "10.$3.0.2/24" dev eth0
    ip -n "$2" link set eth0 up
    ip -n "$2" route add default via "10.$3.0.1"
    ip netns exec "$1" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
    nat_rules "$1" wan "$masquerade"
}

up() {
    case "$kind" in
        cone) masquerade="masquerade" ;;
        symmetric) masquerade="masquerade random,fully-random" ;;
        *) fail "kind of NAT: cone or symmetric, not '$kind'" ;;
    esac
    trap 'down' EXIT
    for part in w p n1 a n2 b; do
        ip netns add "$name-$part"
        ip -n "$name-$part" link set lo up
    done
    ip -n "$name-w" link add br0 type bridge
    ip -n "$name-w" link set br0 up
    plug "$name-p" eth0 198.51.100.1/24 p
    behind "$name-n1" "$name-a" 1
    behind "$name-n2" "$name-b" 2
    trap - EXIT
}

down() {
    for part in w p n1 a n2 b; do
        for pid in $(ip netns pids "$name-$part" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || :; done
        ip netns del "$name-$part" 2>/dev/null || :
    done
}

action="${1:-}"; name="${2:-}"; kind="${3:-}"
case "$action" in
    check) check ;;
    up | down)
        case "$name" in
            "" | *[!a-z0-9]* | ?????????*) fail "NAME: 1 to 8 small letters and digits" ;;
        esac
        "$action" ;;
    *) fail "usage: nat.sh up NAME cone|symmetric | down NAME | check" ;;
esac
