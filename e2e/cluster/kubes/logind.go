package main

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/godbus/dbus/v5"
)

const (
	logindPath    = "/org/freedesktop/login1"
	logindManager = "org.freedesktop.login1.Manager"
	// inhibitDelayMaxMicros is longer than any shutdownGracePeriod: the kubelet then has no configuration of logind to change.
	inhibitDelayMaxMicros = uint64(600_000_000)
)

// lock is a delay lock: its holder keeps one end of a pipe open for as long as the machine must stay on.
type lock struct{ ours, theirs *os.File }

// loginManager is what the kubelet's graceful node shutdown needs of systemd-logind, for nodes without systemd. The interface:
// org.freedesktop.login1(5).
type loginManager struct {
	mutex sync.Mutex
	locks []lock
}

// Inhibit hands out a delay lock.
func (m *loginManager) Inhibit(_, _, _, _ string) (dbus.UnixFD, *dbus.Error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.locks = append(m.locks, lock{ours, theirs})
	return dbus.UnixFD(theirs.Fd()), nil
}

// released waits until every holder has let go of its lock or has ended.
func (m *loginManager) released() {
	m.mutex.Lock()
	locks := slices.Clone(m.locks)
	m.mutex.Unlock()
	for _, lock := range locks {
		// The end that was handed out is a copy of this one: a read ends when all copies are closed.
		lock.theirs.Close()
		lock.ours.Read(make([]byte, 1))
		lock.ours.Close()
	}
}

type loginProperties struct{}

// Get answers the only property the kubelet asks for.
func (loginProperties) Get(iface, name string) (dbus.Variant, *dbus.Error) {
	if iface != logindManager || name != "InhibitDelayMaxUSec" {
		return dbus.Variant{}, dbus.MakeFailedError(fmt.Errorf("no property %s.%s", iface, name))
	}
	return dbus.MakeVariant(inhibitDelayMaxMicros), nil
}

// logind stands in for systemd-logind on the system bus. SIGUSR1 announces a shutdown; the process ends when nobody delays it any more.
func logind() int {
	if err := serveLogind(); err != nil {
		fmt.Fprintln(os.Stderr, "logind:", err)
		return 1
	}
	return 0
}

func serveLogind() error {
	announce := make(chan os.Signal, 1)
	signal.Notify(announce, syscall.SIGUSR1)
	bus, err := dbus.ConnectSystemBus()
	if err != nil {
		return err
	}
	defer bus.Close()
	manager := &loginManager{}
	if err := bus.Export(manager, logindPath, logindManager); err != nil {
		return err
	}
	if err := bus.Export(loginProperties{}, logindPath, "org.freedesktop.DBus.Properties"); err != nil {
		return err
	}
	reply, err := bus.RequestName("org.freedesktop.login1", dbus.NameFlagDoNotQueue)
	if err != nil {
		return err
	}
	if reply != dbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("another logind is on this bus")
	}
	<-announce
	if err := bus.Emit(logindPath, logindManager+".PrepareForShutdown", true); err != nil {
		return err
	}
	manager.released()
	return nil
}
