package interop;

/** The client has no such method. */
final class NotInClientException extends Exception {
    private static final long serialVersionUID = 1;

    NotInClientException(String what) {
        super(what);
    }
}
