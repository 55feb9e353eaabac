// Command kubes is every part of a small Kubernetes cluster in one static binary.
//
// The part is named by argv[0] (through a link: kubelet -> kubes) or by the first argument
// (kubes kubelet ...). Each part must run as a process of its own: metric registries, feature gates
// and flag sets are globals that the parts would fight over.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A part runs with os.Args as if it were a program of its own and returns its exit status.
type part func() int

func main() {
	parts := map[string]part{
		"coredns":                 coreDNS,
		"etcd":                    etcd,
		"helm":                    helm,
		"kube-apiserver":          apiServer,
		"kube-controller-manager": controllerManager,
		"kube-proxy":              kubeProxy,
		"kube-scheduler":          scheduler,
		"kubectl":                 kubectl,
		"kubelet":                 kubelet,
		"logind":                  logind,
	}
	name := filepath.Base(os.Args[0])
	if _, known := parts[name]; !known && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	run, known := parts[name]
	if !known {
		var names []string
		for n := range parts {
			names = append(names, n)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "usage: kubes <%s> [arguments]\n", strings.Join(names, "|"))
		os.Exit(2)
	}
	if name != "coredns" {
		hideCoreDNSFlags()
	}
	os.Exit(run())
}
