// Http-server is a plain net/http service, written for no platform in particular: it serves, asks itself once over the
// network, and ends gracefully when it is told to.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	address := ":8080"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, r *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "hello from %s, pid %d, to %s\n", host, os.Getpid(), r.UserAgent())
	})
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(w, r.Body)
	})
	// Answers when it is asked to, or when the client has had enough.
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		log.Println("slow: begun")
		select {
		case <-time.After(500 * time.Millisecond):
			fmt.Fprintln(w, "slow, but there")
		case <-r.Context().Done():
			log.Println("slow: the client left")
		}
	})
	server := &http.Server{Handler: mux}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	log.Println("listening on", listener.Addr())
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Fatal(err)
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get("http://localhost:" + port + "/hello")
	if err != nil {
		log.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	log.Printf("asked itself: %s %q %v", response.Status, body, err)

	<-ctx.Done()
	log.Println("told to stop:", context.Cause(ctx))
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		log.Fatal(err)
	}
	log.Println("stopped")
}
