package main

import (
	"flag"
	"os"
	"slices"

	"github.com/coredns/coredns/coremain"

	// A Corefile directive exists only if its plugin is linked in.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/template"
)

func coreDNS() int {
	coremain.Run()
	return 0
}

// hideCoreDNSFlags takes CoreDNS's flags off the global flag set.
//
// CoreDNS registers -version, -conf and others there when it is linked in; kube-proxy copies the
// global set, and `kube-proxy --version` would start a proxy. The rest must stay: kubelet looks
// cadvisor's flags up in the global set.
func hideCoreDNSFlags() {
	mine := []string{"conf", "dns.port", "log-format", "p", "pidfile", "plugins", "quiet", "version"}
	all := flag.CommandLine
	flag.CommandLine = flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	all.VisitAll(func(f *flag.Flag) {
		if !slices.Contains(mine, f.Name) {
			flag.CommandLine.Var(f.Value, f.Name, f.Usage)
		}
	})
}
