package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

const (
	killCount = 600
	killAt    = 200
	pause     = 10 * time.Millisecond
	killLimit = 120 * time.Second
)

// leaderKilled: nothing that was acknowledged is lost, and the consumer sees all of it.
func leaderKilled(s *setting) (string, error) {
	seen := newCollection()
	if err := s.consume(consumer.MessageSelector{}, seen.handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	var acknowledged []string
	failures := 0
	deadline := time.Now().Add(killLimit)
	for at := 0; len(acknowledged) < killCount; at++ {
		if time.Now().After(deadline) {
			return "", fmt.Errorf("only %d sent", len(acknowledged))
		}
		if at == killAt {
			output(map[string]any{"event": "kill-leader"})
		}
		body := fmt.Sprint("m", at)
		result, err := p.SendSync(context.Background(), s.message(body))
		if err == nil && result.Status == primitive.SendOK {
			acknowledged = append(acknowledged, body)
		} else {
			failures++
		}
		time.Sleep(pause)
	}
	err = await("all consumed", killLimit, func() bool {
		for _, body := range acknowledged {
			if seen.count(body) == 0 {
				return false
			}
		}
		return true
	})
	return fmt.Sprintf("%d acknowledged, all consumed; %d sends failed", killCount, failures), err
}

// standstill tells of every send and every message, until the runner closes our standard input.
func standstill(s *setting) (string, error) {
	handle := func(_ context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		for _, message := range messages {
			began, err := strconv.ParseInt(string(message.Body), 10, 64)
			if err != nil {
				return consumer.ConsumeSuccess, nil
			}
			tell("consumed", began, message.Queue.BrokerName)
		}
		return consumer.ConsumeSuccess, nil
	}
	if err := s.consume(consumer.MessageSelector{}, handle); err != nil {
		return "", err
	}
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	for {
		select {
		case <-over:
			return "measured", nil
		case <-time.After(pause):
		}
		began := time.Now().UnixMilli()
		result, err := p.SendSync(context.Background(), s.message(strconv.FormatInt(began, 10)))
		if err != nil {
			tell("failed", began, "")
		} else {
			tell("sent", began, result.MessageQueue.BrokerName)
		}
	}
}

func tell(kind string, began int64, broker string) {
	output(map[string]any{
		"event": kind, "began": began, "ended": time.Now().UnixMilli(), "broker": broker,
	})
}
