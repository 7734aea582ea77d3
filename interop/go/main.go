// Runs named cases on the official Go client and prints one JSON line for each.
//
// Usage: interop NAMESERVER PREFIX CASE...; the topics PREFIX-CASE exist already.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/apache/rocketmq-client-go/v2/rlog"
)

// A testCase does one thing that the client and the cluster should do together, and says what it saw.
type testCase func(*setting) (string, error)

// errAbsent says that the client has no such thing.
var errAbsent = errors.New("not in this client")

const concurrent = 6

var (
	outputLock sync.Mutex
	cases      = map[string]testCase{
		"send-sync":         sendSync,
		"send-async":        sendAsync,
		"send-oneway":       sendOneWay,
		"send-batch":        sendBatch,
		"consume-push":      consumePush,
		"consume-orderly":   consumeOrderly,
		"consume-broadcast": consumeBroadcast,
		"filter-tag":        filterTag,
		"filter-sql":        filterSQL,
		"delay-levels":      delayLevels,
		"delay-timers":      absent("no delay but by level"),
		"transaction":       transaction,
		"retry-dlq":         retryDLQ,
		"reset-offset":      resetOffset,
		"request-reply":     requestReply,
		"query-id":          absent("no queries"),
		"query-key":         absent("no queries"),
		"pop":               absent("no pop"),
		"leader-killed":     leaderKilled,
		"standstill":        standstill,
	}
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: interop NAMESERVER PREFIX CASE...")
		os.Exit(2)
	}
	rlog.SetLogLevel("error")
	places := make(chan struct{}, concurrent)
	var running sync.WaitGroup
	for _, name := range os.Args[3:] {
		wanted, known := cases[name]
		if !known {
			wanted = absent("the program has no such case")
		}
		running.Add(1)
		go func(name string) {
			defer running.Done()
			places <- struct{}{}
			defer func() { <-places }()
			run(name, wanted, newSetting(os.Args[1], os.Args[2], name))
		}(name)
	}
	running.Wait()
}

func run(name string, wanted testCase, c *setting) {
	defer c.close()
	detail, err := wanted(c)
	verdict := "yes"
	if errors.Is(err, errAbsent) {
		verdict, detail = "absent", strings.TrimPrefix(err.Error(), errAbsent.Error()+": ")
	} else if err != nil {
		verdict, detail = "no", err.Error()
	}
	output(map[string]any{"case": name, "verdict": verdict, "detail": detail})
}

func absent(why string) testCase {
	return func(*setting) (string, error) { return "", fmt.Errorf("%w: %s", errAbsent, why) }
}

// output prints one line of JSON, whole.
func output(record map[string]any) {
	line, err := json.Marshal(record)
	if err != nil {
		panic(err)
	}
	outputLock.Lock()
	defer outputLock.Unlock()
	fmt.Println(string(line))
}
