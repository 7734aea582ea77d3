package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
)

const sendCount = 50

func sendSync(s *setting) (string, error) {
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for at := 0; at < sendCount; at++ {
		result, err := p.SendSync(context.Background(), s.message(fmt.Sprint("m", at)))
		if err != nil {
			return "", err
		}
		if result.Status != primitive.SendOK {
			return "", fmt.Errorf("status %v", result.Status)
		}
	}
	return readBack(s)
}

func sendAsync(s *setting) (string, error) {
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	var answers sync.WaitGroup
	failures := make(chan error, sendCount)
	answers.Add(sendCount)
	for at := 0; at < sendCount; at++ {
		answered := func(_ context.Context, _ *primitive.SendResult, err error) {
			if err != nil {
				failures <- err
			}
			answers.Done()
		}
		if err := p.SendAsync(context.Background(), answered, s.message(fmt.Sprint("m", at))); err != nil {
			return "", err
		}
	}
	answers.Wait()
	select {
	case err := <-failures:
		return "", err
	default:
		return readBack(s)
	}
}

func sendOneWay(s *setting) (string, error) {
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	for at := 0; at < sendCount; at++ {
		if err := p.SendOneWay(context.Background(), s.message(fmt.Sprint("m", at))); err != nil {
			return "", err
		}
	}
	return readBack(s)
}

func sendBatch(s *setting) (string, error) {
	p, err := s.producer()
	if err != nil {
		return "", err
	}
	var messages []*primitive.Message
	for at := 0; at < sendCount; at++ {
		messages = append(messages, s.message(fmt.Sprint("m", at)))
	}
	result, err := p.SendSync(context.Background(), messages...)
	if err != nil {
		return "", err
	}
	if result.Status != primitive.SendOK {
		return "", fmt.Errorf("status %v", result.Status)
	}
	return readBack(s)
}

func readBack(s *setting) (string, error) {
	seen := newCollection()
	if err := s.consume(consumer.MessageSelector{}, seen.handle); err != nil {
		return "", err
	}
	if err := await("all messages read back", waitTime, func() bool { return seen.size() >= sendCount }); err != nil {
		return "", fmt.Errorf("%w (%d of %d)", err, seen.size(), sendCount)
	}
	for at := 0; at < sendCount; at++ {
		if seen.count(fmt.Sprint("m", at)) == 0 {
			return "", fmt.Errorf("m%d is missing", at)
		}
	}
	return fmt.Sprint(sendCount, " sent and read back"), nil
}
