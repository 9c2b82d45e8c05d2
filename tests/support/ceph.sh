#!/bin/bash
# A Ceph RADOS Gateway with signatures and policies enforced, for `make test-ceph`: one monitor, one OSD in memory and the gateway, all
# on loopback and all in the working directory. Runs until its process group is killed. The user is test, with key test and secret test.
#   ceph.sh GATEWAY_PORT MONITOR_PORT
set -euo pipefail
gateway_port=$1 monitor_port=$2 home=$PWD
export CEPH_CONF=$home/ceph.conf
mkdir -p mon osd gateway logs

cat > ceph.conf <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = v2:127.0.0.1:$monitor_port
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
# Between the daemons only; the gateway checks its clients by itself.
auth cluster required = none
auth service required = none
auth client required = none
# The gateway insists on encryption otherwise, which there is none of without keys.
ms mon client mode = crc
admin socket = $home/\$name.asok
pid file = $home/\$name.pid
log file = $home/logs/\$name.log
keyring = $home/keyring
osd pool default size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
[mon]
mon data = $home/mon
[osd]
osd data = $home/osd
osd objectstore = memstore
memstore device bytes = 2147483648
# Where Debian keeps what the upstream default does not find.
osd class dir = /usr/lib/$(uname -m)-linux-gnu/rados-classes
[client.gateway]
rgw data = $home/gateway
rgw frontends = beast endpoint=127.0.0.1:$gateway_port
rgw thread pool size = 32
CONF

ceph-authtool --create-keyring keyring --gen-key -n mon. --cap mon 'allow *'
ceph-authtool keyring --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
monmaptool --create --fsid "$(sed -n 's/^fsid = //p' ceph.conf)" --addv a "[v2:127.0.0.1:$monitor_port]" monmap
ceph-mon --mkfs -i a --monmap monmap --keyring keyring
ceph-mon -i a -f &
uuid=$(cat /proc/sys/kernel/random/uuid)
timeout 30 ceph --connect-timeout 20 osd new "$uuid"
ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
ceph-osd -i 0 -f &
until timeout 10 ceph --connect-timeout 5 osd stat | grep -q '1 up'; do sleep 0.3; done
# Makes the default zone as well, so it comes before the gateway.
radosgw-admin -n client.gateway user create --uid=test --display-name=test --access-key=test --secret=test
radosgw -n client.gateway -f &
wait
