// Command csi-mock is a CSI driver for the cluster tests: the mock driver of the Kubernetes end-to-end suite, with a
// registration server beside it as node-driver-registrar has one. What it is asked it prints, one JSON object a line.
//
//	csi-mock NAME ROOT [flags of csi-test's Config as JSON]
//
// ROOT is the node's root directory: the driver listens in ROOT/plugins/NAME/csi.sock and registers in
// ROOT/plugins_registry/NAME-reg.sock.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/driver"
	"k8s.io/kubernetes/test/e2e/storage/drivers/csi-test/mock/service"
)

type registrar struct {
	registration.UnimplementedRegistrationServer
	name, endpoint string
}

func (r registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r registrar) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Printf("{\"Registered\":%t,\"Error\":%q}\n", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func listen(path string) net.Listener {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		log.Fatal(err)
	}
	_ = os.Remove(path)
	listener, err := net.Listen("unix", path)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// say prints a call: its method and what it was asked, without secrets' values being secret here.
func say(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	answer, err := handler(ctx, request)
	text := ""
	if err != nil {
		text = err.Error()
	}
	line, _ := json.Marshal(map[string]any{"Method": info.FullMethod, "Request": request, "Error": text})
	fmt.Println(string(line))
	return answer, err
}

func main() {
	name, root := os.Args[1], os.Args[2]
	config := service.Config{}
	if len(os.Args) > 3 {
		if err := json.Unmarshal([]byte(os.Args[3]), &config); err != nil {
			log.Fatal(err)
		}
	}
	config.DriverName = name
	mock := service.New(config)
	servers := driver.NewCSIDriver(&driver.CSIDriverServers{Controller: mock, Identity: mock, Node: mock})
	endpoint := filepath.Join(root, "plugins", name, "csi.sock")
	if err := servers.Start(listen(endpoint), say); err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, registrar{name: name, endpoint: endpoint})
	socket := filepath.Join(root, "plugins_registry", name+"-reg.sock")
	go func() {
		if err := server.Serve(listen(socket)); err != nil {
			log.Fatal(err)
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	<-stop
	_ = os.Remove(socket)
}
